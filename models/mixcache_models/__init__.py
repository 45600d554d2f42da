"""What mixcache knows of model architectures, one a file, and the embedded pipeline `tiny_wan`."""
