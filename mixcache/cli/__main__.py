"""`python -m mixcache.cli` is `mixcache`."""

from mixcache.cli.commands import main

if __name__ == "__main__":
    main()
