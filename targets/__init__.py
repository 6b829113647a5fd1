"""The lowest floor: boards, and how a model is run, timed, judged and installed there.

Standard library and numpy only, and Python 3.8 syntax, because a board or a CI gate has no more. A runtime
(onnxruntime, tensorrt) is imported inside the function that needs it.
"""

# Defined only here, since the agent on a board has only this floor.
__version__ = "0.2.0"
