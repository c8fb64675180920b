"""What the .ini files of several tests have in common."""

OPTIMIZER = """[optimizer]
eps = 1e-8
backbone_init_lr = 1e-3
backbone_weight_decay = 1e-3
classifier_init_lr = 1e-3
classifier_weight_decay = 1e-3
"""
