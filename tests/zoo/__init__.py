"""The zoo: tiny models and pipelines that need no network, and what reads their clips back.

`tiny`: what a tiny pipeline is. `pipelines`: the eight that most tests run on, by name. `architectures`: transformers
of more classes, some with their pipelines. `toy`: a transformer small enough to work out by hand. `flows`: models whose
Lipschitz constants are known. `denoisings`: denoisings of a toy in any order, thread or task. `folder`: a pipeline on
disk, as fixtures. `clips`: reads what was written.
"""
