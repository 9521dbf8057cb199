"""Checkpoints: the state of a run as safetensors by logical names, readable at any layout and without this code.

The nouns, in the order in which a reader meets them. `parallel.chunks.Chunk`: a piece of a logical tensor that a rank
holds. `format`: the manifest, and `Stored`, a checkpoint that is read. `writing`: each rank writes its share, rank 0
commits. `marker`: the file whose presence is the commit. `folders`: all checkpoints of a run. `saver`: writing behind
training's back. `fence`, `log` and `lease`: of two attempts at one run only the later writes. `examine`: list, verify,
compare, export, prune. Folders on any storage are `rtrain.storage`'s.
"""
