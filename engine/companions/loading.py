"""What keeps the engines of one process from loading companions at the same time."""

import threading

# While transformers and diffusers load a model, they change torch for all threads: the initializers of parameters, the
# device that they are made on and the default dtype. Two loads at once left parameters without data.
LOADING = threading.RLock()
