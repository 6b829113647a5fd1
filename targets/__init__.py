"""The ground floor: what a board is, and how a model is run, timed and judged there.

Standard library and numpy only, and Python 3.8 syntax, because this is all that a board or a CI gate
has. A runtime (onnxruntime, tensorrt) is imported inside the function that needs it.
"""

# Here and nowhere else, for the agent on a board has no more than this floor.
__version__ = "0.2.0"
