"""What is published already: read, described, verified, rolled back, tidied.

In: a store and the layout of a partition. Out: tables, findings, or a version that is current
again. All of it goes by the manifests, never by the names of files. Begin with `read.py` and
`verify.py`; what `garbage.py` deletes must stay out of reach of every manifest.
"""
