"""The keys of metrics, as metrics.jsonl, TensorBoard and summary.json write them. Each is defined here alone."""

TRAIN_LOSS = "train/loss"  # mean loss since the last row
LEARNING_RATE = "train/learning_rate"  # of a parameter group with lr_scale 1
WEIGHT_DECAY = "train/weight_decay"  # of the parameters that have one, where OPTIMIZER.weight_decay_end changes it
GRADIENT_NORM = "train/gradient_norm"  # before clipping
IMAGES_PER_S = "time/images_per_s"  # of training, without evaluations and checkpoints
DATA_SHARE = "time/data_share"  # share of the time that training waited for images
BROKEN_FILES = "data/broken_files"  # files that could not be read so far
LEFT_OUT_FILES = "evaluation/left_out"  # broken files that evaluations left out
LEFT_OUT_NAMES = "evaluation/left_out_files"  # at most 100 of them, each with the reason
VAL_LOSS = "val/loss"  # held-out loss
VAL_BASELINE = "val/baseline"  # held-out loss of a prediction that is the mean
TARGET_STD = "val/target_std"  # standard deviation over images of a target that moves with the encoder
TARGET_RANK = "val/target_rank"  # its effective rank (RankMe), of what differs between images
VAL_TOP1 = "val/top1"  # share of held-out images whose class is predicted
VAL_TOP5 = "val/top5"  # the same for the five most likely classes
VAL_BALANCED_ACCURACY = "val/balanced_accuracy"  # mean over classes of the share of their images that is recognised
VAL_MACRO_F1 = "val/macro_f1"  # mean over classes of F1; of several classes at once, at a probability of 0.5
VAL_AUROC = "val/auroc"  # area under the ROC curve; of more than two classes, the mean of each against the others
VAL_MEAN_AP = "val/mean_ap"  # mean over classes of the average precision
VAL_CALIBRATION_ERROR = "val/calibration_error"  # mean distance of confidence and accuracy, in 15 bins
VAL_MAE = "val/mae"  # mean absolute error, in the unit of the labels; this and the next three: mean over columns
VAL_RMSE = "val/rmse"  # root of the mean squared error, in the unit of the labels
VAL_R2 = "val/r2"  # share of the variance that is explained
VAL_SPEARMAN = "val/spearman"  # correlation of ranks
VAL_MIOU = "val/miou"  # mean over classes of intersection over union, over the pixels of all images
VAL_PIXEL_ACCURACY = "val/pixel_accuracy"  # share of pixels whose class is predicted
VAL_BOUNDARY_F1 = "val/boundary_f1"  # mean over images of F1 of the pixels along boundaries
VAL_SAMPLES = "val/samples"  # held-out images with a label
VAL_BY_CLASS = "val/by_class"  # of each class: top1; of several at once the average precision; of masks the IoU
VAL_BY_COLUMN = "val/by_column"  # of each column of numbers: mae, rmse, r2, spearman
VAL_UNDEFINED = "val/undefined"  # why a metric, its interval or a class of its mean is missing, by key
CHOICE_SETTING = "choice/setting"  # of a probe with several settings: the position of the chosen one, from 0
CHOICE_TITLE = "choice/title"  # what differs between it and the others, as in `rate 3`
VAL_BEST_RATE = "val/best_rate"  # the rate that runs of 0.1.0 chose
KNN_TOP1 = "knn/top1"  # top1 of nearest neighbours on frozen features
LOGISTIC_TOP1 = "logistic/top1"  # top1 of a logistic regression on frozen features
RETRIEVAL_MAP = "retrieval/map"  # mean average precision of the nearest images, with at_k
RETRIEVAL_RECALL = "retrieval/recall"  # share of queries with an image of their class among the nearest, with at_k
CORRUPTIONS_CLEAN = "corruptions/clean_top1"  # top1 of the held-out images as they are, beside corrupted ones
CORRUPTIONS_TOP1 = "corruptions/top1"  # its mean over corruptions and severities of ImageNet-C
CORRUPTIONS_BY_NAME = "corruptions/by_name"  # of each corruption: its mean over severities, interval and each severity
BEST_EPOCH = "best/epoch"  # epoch of best.pt


def train(name: str) -> str:
    """The key of a scalar that a training step logs beside its loss, such as the loss of one target: `loss_hog`."""
    return f"train/{name}"


def val(name: str) -> str:
    """The key of the same scalar on held-out images."""
    return f"val/{name}"


def at_start(key: str) -> str:
    """The key of the same metric before the first step, in summary.json."""
    return f"{key}_at_start"


def of_setting(key: str, title: str) -> str:
    """The key of a metric for one setting of a probe, by its title: `val/top1_rate_3`."""
    return f"{key}_{title.replace(',', '').replace(' ', '_')}" if title else key


def choice(key: str) -> str:
    """The key of a metric on the images that choose among the settings of a probe: choice/top1 for val/top1."""
    return f"choice/{key.rpartition('/')[2]}"


def dense(classifier: str, key: str) -> str:
    """The key of a metric of masks by a classifier of patches: dense/knn_miou for val/miou."""
    return f"dense/{classifier}_{key.rpartition('/')[2]}"


def at_k(key: str, k: int) -> str:
    """The key of a metric of the k nearest images: retrieval/map@10."""
    return f"{key}@{k}"


def interval(key: str) -> str:
    """The key of the 95% interval of a metric, [low, high]."""
    return f"{key}_interval"


def on_held_out(key: str) -> str:
    """The key of the same metric on held-out images: val/top1 for choice/top1."""
    return val(key.rpartition("/")[2])


def best(key: str) -> str:
    """The key of a metric's value at the best evaluation: best/top1 for val/top1, best/choice_top1 for choice/top1."""
    return f"best/{key.removeprefix('val/').replace('/', '_')}"
