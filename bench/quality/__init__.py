"""How true videos are: ``bench quality`` and ``magcache``, and the world of the demo model, whose formulas are the truth.

May import meters, operations and records. Outside: ``world`` (the demo model is trained on it), ``clip_scores``.
"""
