"""What an .ini file can hold: a frozen dataclass for each section, with the keys' defaults and ranges. Free of torch.

The README's table of settings says the same for a reader; a test compares the two.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any

TASKS = {"isolated": "slr.tasks.isolated:Isolated", "continuous": "slr.tasks.continuous:Continuous",
         "translation": "slr.tasks.translation:Translation", "multihead": "slr.tasks.multihead:Multihead",
         "transcription": "slr.tasks.transcription:Transcription", "pretraining": "slr.tasks.pretraining:Pretraining"}
# of a set, by task; the last one picks best.pth unless the .ini says otherwise (of signs the loss does)
METRICS = {"isolated": ("loss", "acc"), "continuous": ("loss", "wer"), "translation": ("loss", "bleu4"),
           "multihead": ("loss", "exact", "f1"), "transcription": ("loss", "wer"), "pretraining": ("loss", "accuracy")}
# So it does of these pre-trainings; contrastive learning's is no guide, for it is lowest where all codes are one.
BEST_BY_LOSS = ("VideoMAEPretrain", "LanguageDecoder")
RISING = ("acc", "bleu4", "exact", "f1", "accuracy")  # the higher, the better
LANDMARK_NETS = ("landmark_extractor", "gcn_extractor")  # extractors that look at no frames
LENGTHS = 4  # frames of a sentence in training come in multiples of this


def key(default: Any = MISSING, *, choices: tuple = (), low: float | None = None, high: float | None = None,
        above: float | None = None) -> Any:
    """A key of a section: its default (none: required), its allowed values, its range (`above` is exclusive)."""
    return field(default=default, metadata={"choices": choices, "low": low, "high": high, "above": above})


@dataclass(frozen=True)
class ExperimentSection:
    """Which system this is, and the seed of everything that is drawn at random."""

    task: str = key("isolated", choices=tuple(TASKS))
    seed: int = key(42, low=0)


@dataclass(frozen=True)
class TrainingSection:
    """How long, in what portions, and with which numerics."""

    batch_size: int = key(low=1)  # clips of one forward pass, over all processes together
    update_per_step: int = key(low=1)  # forward passes of one optimiser step
    max_epoch: int = key(low=1)
    save_every: int = key(5, low=1)  # epochs between numbered checkpoints
    validate_every: int = key(0, low=0)  # steps between validations inside an epoch; 0: at its end alone
    save_minutes: float = key(0.0, low=0)  # since the last save, then resume.pth inside an epoch; 0: at its end
    keep_top: int = key(0, low=0)  # the best so many epochs stay as files beside best.pth
    limit_train_batches: int = key(0, low=0)  # an epoch is its first so many batches; 0: all
    limit_val_batches: int = key(0, low=0)  # the same of validation in training; tests see all
    # of validation: picks best.pth
    best_metric: str = key("auto", choices=("auto", "loss", "acc", "wer", "bleu4", "exact", "f1", "accuracy"))
    precision: str = key("auto", choices=("auto", "fp32", "bf16", "fp16"))  # auto: bf16 on a GPU that has it
    clip_norm: float = key(0.0, low=0)  # largest gradient norm, 0 = no clipping
    clip_value: float = key(0.0, low=0)  # or the largest absolute entry of a gradient, 0 = none
    label_smoothing: float = key(0.0, low=0, high=0.999)
    mixup: float = key(0.0, low=0)  # alpha of the Beta distribution, 0 = off
    ema: float = key(0.0, low=0, high=0.99999)  # decay of the weights' moving average, 0 = off
    channels_last: str = key("auto", choices=("auto", "on", "off"))  # auto: where it makes the model faster
    compile: bool = key(False)
    deterministic: bool = key(False)  # refuse operations that are not reproducible (the CPU's always are)
    tensorboard: bool = key(False)
    fast_dev_run: bool = key(False)  # one batch of everything, nothing is written: training.py --dry_run


@dataclass(frozen=True)
class OptimizerSection:
    """AdamW over two parameter groups."""

    eps: float = key(above=0)
    backbone_init_lr: float = key(low=0)
    backbone_weight_decay: float = key(low=0)
    classifier_init_lr: float = key(low=0)
    classifier_weight_decay: float = key(low=0)
    betas: tuple[float, float] = key((0.9, 0.999))
    layer_decay: float = key(1.0, above=0, high=1)  # of the rates, a factor for each layer towards the input; 1 = off
    mapper_init_lr: float | None = key(None, low=0)  # Sign2Text's mapper; None: the classifier's
    translator_init_lr: float | None = key(None, low=0)  # and its translator, or Gloss2Text; None: the classifier's
    translator_weight_decay: float | None = key(None, low=0)  # None: the classifier's


@dataclass(frozen=True)
class ModelSection:
    """The network's own settings, and the weights it starts from."""

    drop_p: float = key(low=0, high=1)
    drop_path: float | None = key(None, low=0, high=1)  # stochastic depth of Swin3D and MViT; None: the model's own
    pretrained: bool = key(True)  # Kinetics weights, from torchvision's cache or its server
    weights: str = key("")  # a file with them instead
    init_from: str = key("")  # a checkpoint of another experiment, or its MODEL/SPLIT/EXP_NO
    bn_momentum: float | None = key(None, above=0, high=1)  # None: 0.001 when pretrained, 0.1 from scratch
    frozen_blocks: int | None = key(None, low=0, high=4)  # S3D_CTC: stay as they start; None: 1, from scratch 0
    last_relu: bool | None = key(None)  # S3D_CTC's head: behind its last convolution; None: yes. SLRT's weights: no


@dataclass(frozen=True)
class SpatialSection:
    """What sees each frame for SpatioTemporal: a DINOv2 that does not train. The sizes are of an untrained one
    (model_params.pretrained = False); a pretrained one brings its own."""

    dinov2: str = key("facebook/dinov2-base")  # a folder as transformers saves it, or the hub's name
    width: int = key(768, low=1)
    layers: int = key(12, low=1)
    heads: int = key(12, low=1)
    patch: int = key(14, low=1)  # pixels
    image: int = key(518, low=1)  # pixels of a side that it has positions for; for others they are interpolated
    seed: int = key(0, low=0)  # of untrained weights
    chunk: int = key(32, low=1)  # frames at a time
    standardise: bool = key(False)  # each of its numbers by mean and deviation over some training clips
    cache: bool = key(False)  # every frame is seen once, as evaluation has it, and kept on the disk


@dataclass(frozen=True)
class EncoderSection:
    """What looks at a clip. None: as the model is published, by MODEL."""

    layers: int | None = key(None, low=1)
    heads: int | None = key(None, low=1)
    ffn: int | None = key(None, low=1)
    width: int | None = key(None, low=1)  # of SpatioTemporal it is spatial.width
    dropout: float = key(0.1, low=0, high=0.999)
    # VideoMAE and ViViT
    patch: int = key(16, low=1)  # pixels of a tubelet's sides
    tubelet: int = key(2, low=1)  # and its frames
    # SpatioTemporal
    kernel: int = key(128, low=1)  # frames that the convolution of positions sees
    groups: int = key(16, low=1)  # of its channels
    layerdrop: float = key(0.1, low=0, high=0.999)  # how often a layer is skipped in training
    mask_share: float = key(0.05, low=0, high=1)  # of the frames that SpecAugment masks in training, at most
    mask_length: int = key(10, low=1)  # frames of a span
    mask_least: int = key(2, low=0)  # spans of a clip


@dataclass(frozen=True)
class LanguageDecoderSection:
    """What says the glosses, word by word."""

    width: int = key(256, low=1)
    layers: int = key(7, low=1)
    heads: int = key(4, low=1)
    ffn: int = key(1536, low=1)
    positions: int = key(1024, low=3)  # tokens of a sentence at most, with its start
    dropout: float = key(0.1, low=0, high=0.999)


@dataclass(frozen=True)
class TranscriptionSection:
    """How glosses are learnt and said by the language decoder; of the task `transcription`."""

    smoothing: float = key(0.0, low=0, high=0.999)  # of the cross-entropy in training
    ctc_weight: float = key(0.0, low=0)  # of the joint CTC on the encoder beside it; 0: there is none
    ctc_share: float = key(0.0, low=0, high=1)  # of the joint CTC in what is said; the decoder has the rest
    beam_width: int = key(5, low=1)  # in tests; validation takes the likeliest word each time
    length_penalty: float = key(1.0, low=-50, high=50)  # log-probabilities are divided by length to this power
    max_length: int = key(100, low=2)  # words of a sentence


@dataclass(frozen=True)
class PretrainingSection:
    """What is learnt without labels; of the task `pretraining`."""

    # SpatioTemporalPretrain: wav2vec 2.0
    mask_share: float = key(0.3, low=0, high=1)  # of the frames, at most
    mask_length: int = key(2, low=1)  # frames of a span
    negatives: int = key(10, low=1)  # other masked frames that a frame is told from
    code_groups: int = key(2, low=1)
    codes: int = key(320, low=2)  # of each group
    code_dim: int = key(256, low=1)  # numbers of a frame's code
    compare_dim: int = key(256, low=1)  # and of what is compared
    diversity: float = key(0.1, low=0)  # weight of the loss that keeps all codes in use
    temperature: float = key(2.0, above=0)  # of the Gumbel softmax, when it begins
    temperature_end: float = key(0.5, above=0)  # it never falls below
    temperature_decay: float = key(0.999995, above=0, high=1)  # a factor for every step
    # VideoMAEPretrain
    mask_ratio: float = key(0.9, above=0, high=0.999)  # of the tubes
    decoder_width: int = key(384, low=1)
    decoder_layers: int = key(4, low=1)
    decoder_heads: int = key(6, low=1)
    decoder_ffn: int = key(1536, low=1)


@dataclass(frozen=True)
class DataSection:
    """What a clip is, where it comes from, and what is done to it in training."""

    num_frames: int = key(low=1)
    frame_size: int = key(low=1)  # pixels, both sides
    root: str = key("")  # "": $SLR_DATA, else data/
    store: str = key("video", choices=("video", "jpeg", "raw"))
    crop: str = key("box", choices=("box", "frame"))  # the person's box, where the annotation has one that fits
    eval_resize: float = key(1.143, low=1)  # evaluation: short side = this x frame_size (256 / 224), then a centre crop
    min_scale: float = key(0.7, above=0, high=1)  # training: smallest area of the random crop
    max_aspect: float = key(1.333, low=1)  # training: largest aspect of the random crop
    hflip: float = key(0.0, low=0, high=1)  # chance of a mirrored clip; signs have handedness
    jitter: tuple[float, float, float, float] = key((0.2, 0.2, 0.2, 0.05))  # brightness, contrast, saturation, hue
    jitter_p: float = key(1.0, low=0, high=1)  # share of the clips whose colours are changed
    rand_augment: float = key(0.0, low=0, high=10)  # magnitude of RandAugment's operations, of 10; 0 = off
    rand_augment_n: int = key(2, low=1, high=15)  # operations drawn for a clip
    rand_augment_p: float = key(0.5, low=0, high=1)  # with which each of them is carried out
    erase_p: float = key(0.0, low=0, high=1)  # chance of one erased rectangle, the same in all frames
    keypoints: str = key("")  # sentences: a pickle of the points on every frame; from the data folder on
    heatmap: str = key("none", choices=("none", "max", "points"))  # all points in one channel, or one each
    frame_stride: int = key(1, low=1)  # sentences: only every n-th frame
    short_first: int = key(0, low=0)  # sentences: epochs, the first ones, that go from the shortest to the longest
    jitter_frames: bool = key(True)  # training: each frame from anywhere in its even segment; sentences: other lengths
    jitter_length: tuple[float, float] = key((0.5, 1.5))  # of a sentence's frames, from the first number to the second
    subtract_clip_mean: bool = key(False)  # takes the still picture away: learns from scratch far sooner
    workers: int = key(-1, low=-1)  # loader processes; -1: one a core, at most 8
    prefetch: int = key(2, low=1)  # batches that each worker prepares ahead
    pin_memory: bool = key(True)  # only where there is a GPU


@dataclass(frozen=True)
class DecodingSection:
    """How glosses are read off a sentence's time steps, and how they are scored; of the task `continuous`."""

    beam_width: int = key(10, low=1)  # in tests; validation takes the best path
    mirror: bool = key(False)  # tests look at the mirrored clip as well, and average the two: twice the time
    cleanup: str = key("auto", choices=("auto", "phoenix2014", "phoenix2014t", "none"))  # auto: as SPLIT is called
    fps: float = key(25.0, above=0)  # frames a second, for times in files


@dataclass(frozen=True)
class MambaSection:
    """The sizes of MambaSLR; the defaults are the model's own."""

    dim: int = key(512, low=4)  # channels of a token
    depth: int = key(12, low=1)  # blocks
    expand: int = key(2, low=1)  # channels of a scan, times dim
    headdim: int = key(64, low=1)  # channels of a head of the scans
    spatial_state: int = key(16, low=1)  # numbers that a scan over patches keeps of each channel
    temporal_state: int = key(32, low=1)  # the same of a scan over frames
    attn_layers: tuple[int, ...] = key((4,))  # blocks, from 0, that attend instead of scanning the patches
    attn_heads: int = key(8, low=1)
    stem_depth: int = key(3, low=0)  # convolution blocks on each of the stem's first two scales
    downsample: tuple[int, ...] = key(())  # blocks before which time is halved, e.g. (4, 8); none is faithful
    recompute: bool = key(False)  # blocks are computed again in the backward pass: a third more time, far less memory


@dataclass(frozen=True)
class TranslationSection:
    """From what is signed to a spoken sentence; of the task `translation`."""

    translator: str = key("small", choices=("small", "mbart"))
    language: str = key("auto")  # of the text: de_DE, zh_CN, en_XX, …; auto: as SPLIT is called
    gloss_language: str = key("auto")  # de_DGS, zh_CSL, …; auto: the one that goes with SPLIT
    # the small translator
    tokens: str = key("auto", choices=("auto", "word", "char", "pieces"))  # auto: of Chinese characters, else words
    pieces: int = key(1000, low=16)  # SentencePiece's vocabulary, where tokens = 'pieces'
    width: int = key(256, low=4)
    layers: int = key(3, low=1)  # of the encoder, and as many of the decoder
    heads: int = key(4, low=1)
    ffn: int = key(1024, low=1)
    dropout: float = key(0.3, low=0, high=1)  # of either translator
    # mBART
    mbart: str = key("facebook/mbart-large-cc25")  # a folder (pruned: preprocess.py --prune_mbart), or the hub's name
    attention_dropout: float = key(0.1, low=0, high=1)
    freeze_text: bool = key(False)  # its table of tokens stays as it is
    freeze_gloss: bool = key(False)  # Gloss2Text: so do the glosses' embeddings
    # signing to text
    features: str = key("")  # extract_features.py's folder, MODEL/SPLIT/EXP_NO or SLRT's pickles; "": from the video
    visual: str = key("S3D_CTC")  # whose gloss head reads them, where no checkpoint says it
    mapper: str = key("projection", choices=("projection", "embedding"))  # of gloss features, or of probabilities
    scratch: bool = key(False)  # start without the checkpoints of model_params.init_from
    # losses
    smoothing: float = key(0.2, low=0, high=0.999)
    per_token: bool = key(False)  # a sentence's loss is the mean over its tokens, not the sum
    ctc_weight: float = key(1.0, low=0)
    text_weight: float = key(1.0, low=0)
    # search
    beam_width: int = key(5, low=1)  # in tests; validation takes the likeliest token each time
    length_penalty: float = key(1.0, low=-50, high=50)  # log-probabilities are divided by length to this power
    max_length: int = key(100, low=2)  # tokens of a sentence
    sweep_beams: tuple[int, ...] = key((), low=1)  # tests try these on the validation set, with these
    sweep_penalties: tuple[float, ...] = key((), low=-50, high=50)  # penalties; the test set gets the best pair


@dataclass(frozen=True)
class MultiheadSection:
    """Which symbols of a sign are asked for, where the signs lie, and what is seen of them; of the task `multihead`."""

    mode: str = key("auto", choices=("auto", "hamnosys", "gloss"))  # whose heads there are; auto: as SPLIT ends
    data_paths: tuple[str, ...] = key(())  # from HEARAI in the data folder on; (): the set that SPLIT begins with
    val_paths: tuple[str, ...] = key(())  # (): a share of data_paths
    test_paths: tuple[str, ...] = key(())  # the same
    annotation_file: str = key("")  # in each of these paths; "": test_hamnosys.txt or test_gloss.txt, as the mode
    separator: str = key("")  # between its columns; "": white space
    split_by: str = key("ratio", choices=("ratio", "signer", "stratified"))  # how data_paths are shared out
    ratio_train_test: float = key(0.8, above=0, high=1)  # training's share; the rest is for those without paths
    landmarks: str = key("")  # which, in this order: right_hand left_hand pose face; "": none
    time: float = key(0.0, low=0)  # seconds between frames; 0: data.num_frames of them, evenly over the sign
    loss: str = key("cross_entropy", choices=("cross_entropy", "bce"))  # bce: of each class, on one-hot labels
    class_weights: bool = key(False)  # a label's loss weighs as the label is rare in training
    pre_training: bool = key(False)  # the extractor with the heads alone; model_params.init_from then takes it over
    dictionary: str = key("")  # glosses and their symbols, for the look-up; "": dictionary.csv beside the data


@dataclass(frozen=True)
class AugmentationsSection:
    """How a picture comes to its size, and what training does to it: the same draw for all frames of a sign."""

    apply_resize: bool = key(True)
    apply_center_crop: bool = key(False)
    apply_random_erasing: bool = key(False)
    apply_random_rotation: bool = key(False)
    apply_color_jitter: bool = key(False)
    resize_size: int | None = key(None, low=1)  # pixels, both sides; None: data.frame_size
    center_crop_size: int | tuple[int, int] | None = key(None, low=1)  # or height and width
    random_erasing_probability: float = key(0.25, low=0, high=1)
    random_rotation_degree: float = key(10.0, low=0, high=180)  # to either side
    color_jitter_brightness: float | tuple[float, float] = key(0.2, low=0)  # b: a factor from 1 - b to 1 + b; or from
    color_jitter_contrast: float | tuple[float, float] = key(0.2, low=0)  # the first number to the second
    color_jitter_saturation: float | tuple[float, float] = key(0.2, low=0)
    color_jitter_hue: float | tuple[float, float] = key(0.05, low=-0.5, high=0.5)  # in turns, around 0


@dataclass(frozen=True)
class ExtractorSection:
    """What makes a vector of every frame."""

    name: str = key("cnn_extractor", choices=("cnn_extractor", "resnet50_extractor", "r2plus1d_extractor",
                                              *LANDMARK_NETS))  # the last two: landmarks alone
    model_path: str = key("")  # cnn_extractor: the model's name in timm
    landmark_net: str = key("landmark_extractor", choices=LANDMARK_NETS)  # beside frames
    representation_size: int = key(512, low=1)  # numbers of a frame's vector


@dataclass(frozen=True)
class TransformerSection:
    """What makes a sign of the frames' vectors."""

    name: str = key("sign_language_transformer", choices=("sign_language_transformer", "sign_language_cnn_transformer",
                                                          "hubert_transformer", "lstm", "fake_transformer"))
    feedforward_size: int = key(1024, low=1)
    num_attention_heads: int = key(4, low=1)
    num_encoder_layers: int = key(2, low=1)
    output_size: int = key(512, low=1)  # numbers that the heads are given
    hidden_size: int = key(768, low=1)  # hubert_transformer: its width
    model_path: str = key("")  # hubert_transformer: a folder with its weights, whose sizes are then taken
    dropout_rate: float = key(0.1, low=0, high=0.999)


@dataclass(frozen=True)
class HeadsSection:
    """(Classes, weight of the loss) of each head; None: there is no such head. Without the section: those of the mode,
    with the weights of HearAI's example."""

    symmetry_operator: tuple[int, float] | None = key(None, low=0)
    hand_shape_base_form: tuple[int, float] | None = key(None, low=0)
    hand_shape_thumb_position: tuple[int, float] | None = key(None, low=0)
    hand_shape_bending: tuple[int, float] | None = key(None, low=0)
    hand_position_finger_direction: tuple[int, float] | None = key(None, low=0)
    hand_position_palm_orientation: tuple[int, float] | None = key(None, low=0)
    hand_location_x: tuple[int, float] | None = key(None, low=0)
    hand_location_y: tuple[int, float] | None = key(None, low=0)
    hand_location_distance: tuple[int, float] | None = key(None, low=0)
    gloss: tuple[int, float] | None = key(None, low=0)


# The weights of HearAI's example; its table has 1 for the base form and 0 for the others.
HEADS_OF = {"hamnosys": HeadsSection((9, 0.1), (12, 1.0), (4, 0.3), (6, 0.1), (18, 0.1), (8, 0.1), (5, 0.1), (37, 0.1)),
            "gloss": HeadsSection(gloss=(2400, 1.0))}


@dataclass(frozen=True)
class FreezeSection:
    """Which weights stay as they are for how long; afterwards all of them train. Absent: all train."""

    model_params: dict[str, tuple[bool, ...]] = key()  # {'feature_extractor': (True, False), …}: True is frozen
    freeze_pattern_repeats: tuple[int, ...] = key(low=1)  # how long each of them lasts
    freeze_mode: str = key("epoch", choices=("epoch", "step"))  # in epochs, or in steps of the optimiser
    verbose: bool = key(True)  # say it when something is frozen or freed


@dataclass(frozen=True)
class SchedulerSection:
    """The learning rate's plan; an absent section is a constant rate."""

    type: str = key(choices=("CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ReduceLROnPlateau", "WarmOnly",
                              "OneCycleLR", "MultiplicativeLR", "WarmupHoldDecay"))
    tmax: int | None = key(None, low=1)
    t0: int | None = key(None, low=1)
    tmult: int | None = key(None, low=1)
    eta_min: float = key(0.0, low=0)
    mode: str = key("min", choices=("min", "max"))
    factor: float = key(0.1, above=0, high=0.999999)
    patience: int = key(10, low=0)
    threshold: float = key(1e-4, low=0)
    threshold_mode: str = key("rel", choices=("rel", "abs"))
    cooldown: int = key(0, low=0)
    min_lr: float = key(0.0, low=0)
    eps: float = key(1e-8, low=0)
    start_factor: float = key(1.0, above=0, high=1)
    end_factor: float = key(1.0, above=0, high=1)
    warmup_epochs: int = key(0, low=0)
    warmup_steps: int = key(0, low=0)  # in their place: step k of n has k / n of the rate
    multiply_lr_step: float = key(1.0, above=0, high=2)  # MultiplicativeLR: a factor for every step behind them
    hold_steps: int = key(0, low=0)  # WarmupHoldDecay: steps behind them that keep the rate
    tick_steps: int | None = key(None, low=1)  # and then a factor, decay, after every so many steps
    decay: float = key(1.0, above=0, high=1)
    pct_start: float = key(0.3, above=0, high=0.999)  # OneCycleLR: share of tmax in which the rate rises
    div_factor: float = key(25.0, low=1)  # from its peak, which is the rate, divided by this
    final_div_factor: float = key(1e4, low=1)  # and ends at the start's, divided by this
    every: str = key("epoch", choices=("epoch", "step"))  # when the rate moves; plateau: always by epoch


@dataclass(frozen=True)
class EarlyStoppingSection:
    """Stop when the metric has not improved by min_delta for `patience` epochs; absent = off."""

    metric: tuple[str, str] = key()
    mode: str = key(choices=("min", "max"))
    patience: int = key(low=1)
    min_delta: float = key(low=0)


SECTIONS: dict[str, type] = {
    "experiment": ExperimentSection, "training": TrainingSection, "optimizer": OptimizerSection,
    "model_params": ModelSection, "mamba": MambaSection, "translation": TranslationSection, "data": DataSection,
    "spatial": SpatialSection, "encoder": EncoderSection, "language_decoder": LanguageDecoderSection,
    "transcription": TranscriptionSection, "pretraining": PretrainingSection,
    "decoding": DecodingSection, "multihead": MultiheadSection, "augmentations": AugmentationsSection,
    "feature_extractor": ExtractorSection, "transformer": TransformerSection, "heads": HeadsSection,
    "freeze_scheduler": FreezeSection, "scheduler": SchedulerSection, "early_stopping": EarlyStoppingSection,
}
# mamba: there for MambaSLR, decoding: for sentences, translation: for their texts, from multihead to freeze_scheduler:
# for SignTransformer, and only there
OF_MULTIHEAD = ("multihead", "augmentations", "feature_extractor", "transformer", "heads")
# the sections of each model that transcribes, or is pre-trained for it
OF_WORDS = {"SpatioTemporal": ("spatial", "encoder", "language_decoder", "transcription", "decoding"),
            "VideoMAE": ("encoder", "language_decoder", "transcription", "decoding"),
            "ViViT": ("encoder", "language_decoder", "transcription", "decoding"),
            "SpatioTemporalPretrain": ("spatial", "encoder", "pretraining"),
            "VideoMAEPretrain": ("encoder", "pretraining"), "LanguageDecoder": ("language_decoder",)}
# what None stands for in [encoder]
PUBLISHED_ENCODERS = {"SpatioTemporal": {"layers": 6, "heads": 8, "ffn": 2048},
                      "VideoMAE": {"layers": 12, "heads": 12, "ffn": 3072, "width": 768},
                      "ViViT": {"layers": 12, "heads": 12, "ffn": 3072, "width": 768}}
OPTIONAL = ("mamba", "translation", "spatial", "encoder", "language_decoder", "transcription", "pretraining",
            "decoding", *OF_MULTIHEAD, "freeze_scheduler", "scheduler", "early_stopping")

# Which keys each plan reads; the others of its section are accepted (old files hold them) and do nothing.
_WARMUP = {"type", "start_factor", "end_factor", "warmup_epochs", "warmup_steps", "every"}
SCHEDULER_KEYS = {
    "CosineAnnealingLR": _WARMUP | {"tmax", "eta_min"},
    "CosineAnnealingWarmRestarts": _WARMUP | {"t0", "tmult", "eta_min"},
    "ReduceLROnPlateau": _WARMUP | {"mode", "factor", "patience", "threshold", "threshold_mode", "cooldown",
                                    "min_lr", "eps"},
    "WarmOnly": _WARMUP,
    "OneCycleLR": {"type", "tmax", "pct_start", "div_factor", "final_div_factor"},
    "MultiplicativeLR": _WARMUP | {"multiply_lr_step"},
    "WarmupHoldDecay": {"type", "warmup_steps", "hold_steps", "tick_steps", "decay", "min_lr"},
}

# Keys that the old program knew for a while.
OLD_KEYS = {
    "data": {"frame_size_strategy", "spatial_aug", "temporal_aug", "sampler", "frame_sampler", "augmentation",
             "aug_strategy", "norm", "normalise", "strict_size", "target_length"},
    "training": {"max_steps", "batch_size_equivalent"},
    "model_params": {"frozen", "name"},
}
