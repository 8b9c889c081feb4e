"""Training elsewhere: on Vertex AI, through XManager, and on several hosts.

Empty, so that a run on its hosts imports no client of Google Cloud.
"""
