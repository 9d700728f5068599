"""Commands: one file each, which imports torch only once it has read its arguments and its config."""

COMMANDS = {  # name: purpose
    "train": "pretrains, fine-tunes or probes, as TASK of the config says",
    "plan": "shows what a run will be and cost, before it starts",
    "masks": "draws what a masker hides, with AvgDist",
    "reconstruct": "draws what a pretrained model predicts for images",
    "evaluate": "kNN, logistic regression, accuracy or features of a checkpoint",
    "compare": "compares runs in tables and on one HTML page",
    "sweep": "trains a study: many settings, protocols and seeds",
    "convert": "converts weights to and from other code bases",
    "pack": "turns images into a packed data set, resized",
    "benchmark": "measures the speed of a config on this machine",
    "quickstart": "pretrains MAE and SimMIM on digits and compares them",
}
