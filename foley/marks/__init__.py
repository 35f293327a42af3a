"""What says that a sound is machine-made: the mark, its keys, and C2PA manifests.

Plain tags in containers are written and read in `foley/media/marks.py`. `c2pa` and `cryptography`
are the extra `marks`; without it there are plain tags alone.
"""
