"""How the demo model was trained: ``PYTHONPATH=examples python -P -m train_demo.train all --folder demo-model``.

May import isoframe, whose ``bench.quality.world`` draws what the model is trained on. Not installed: it runs from a clone.
"""
