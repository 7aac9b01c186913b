"""How a run goes, whatever it trains."""

train = dict(
    output_dir="output",
    # A checkpoint file; "none" trains from scratch. A recipe without its weights stops before work starts.
    init_checkpoint="",
    # Start parameters whose shape differs (another number of classes) afresh instead of refusing the file.
    init_allow_mismatch=False,
    max_iter=90000,
    # "auto" is CUDA when there, else the CPU; mixed precision is for CUDA only and is turned off on the CPU.
    device="auto",
    amp=dict(enabled=True),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    # Several processes: seconds until an exchange, or the start of one of them, counts as failed and ends the job; rank
    # 0's part of an evaluation has to fit in.
    dist_timeout=1800.0,
    # Seconds until a process whose machine does not answer any more counts as gone, which ends the job.
    peer_timeout=60.0,
    # Largest norm of all gradients together, which is recorded as grad_norm; None does not clip.
    clip_grad_norm=None,
    # Passes in an optimizer step, among which the loader's total_batch_size is divided: the recipe stays what it is,
    # and takes less memory. Iterations are optimizer steps.
    accumulate=1,
    # Losses or gradients that are not finite never reach the weights; the batch is written to bad_numbers.jsonl in the
    # output folder. action: "stop"; "skip" the step; "rollback" to a snapshot in memory, made every snapshot_period
    # iterations; "off". So many in a row, or in all, stop in any case.
    bad_numbers=dict(action="stop", max_in_a_row=10, max_total=100, snapshot_period=100),
    # A moving average of the weights, kept in checkpoints and written to model_final_ema.pth. evaluate: "both", "ema"
    # or "raw"; results of the average end in _EMA. With warmup the decay rises as 1 - iteration^(-2/3) to its value.
    ema=dict(enabled=False, decay=0.9998, warmup=True, evaluate="both"),
    checkpointer=dict(period=5000, max_to_keep=10),
    # A resumed run goes on as if it had not been interrupted: random numbers, the order of the data and augmentation,
    # which has random numbers of its own for each sample. Without it they are Detectron2's.
    exact_resume=True,
    eval_period=5000,
    # Evaluate this many images, the first ones, for a look while training; None: all, which alone makes a result.
    limit_eval_images=None,
    # model_best.pth: the weights with the best (mode "max" or "min") value of a metric, such as "bbox/AP"; None: none.
    best=dict(metric=None, mode="max"),
    # End once a metric has not improved by more than min_delta in so many evaluations; None goes on to max_iter.
    early_stopping=dict(metric=None, mode="max", patience=5, min_delta=0.0),
    # Evaluate detectors a second time in several sizes (short sides in pixels) and mirrored; results end in _TTA.
    tta=dict(
        enabled=False,
        min_sizes=[400, 500, 600, 700, 800, 900, 1000, 1100, 1200],
        max_size=4000,
        flip=True,
    ),
    # Segmentors: how images are run in evaluation, each way with results of its own. "whole"; "slide": in windows;
    # "ms": in several sizes and mirrored; "ms_slide": both. dataset.inference has the sizes.
    semantic_modes=["whole"],
    # How closely own data is checked before training: "names" (the json or the folders, and whether the images are
    # there), "headers" (their sizes too, and up to 200 label maps), "pixels" (every image and label map is decoded),
    # "auto" ("headers" for up to 2,000 images, "names" for more) or "off".
    check_data="auto",
    # Where the memory that is free does not suffice by the estimate for a step: "error", "warn" or "off".
    check_memory="error",
    log_period=20,
    # A bar with losses, times and the time left: "auto" where stdout and stderr are a terminal, "bar" where stdout is
    # one, "plain" never. Lines with the same go to the log file.
    progress="auto",
    # Pictures in the output folder at each evaluation: predictions beside the ground truth of so many test images, and
    # summary.png.
    figures=dict(enabled=True, images=4),
    # Send what is recorded to Weights & Biases as well: mode "online" or "offline"; without a name the run is called
    # like its folder.
    wandb=dict(enabled=False, project="elsa_det", name=None, mode="online"),
    # Of all random numbers; -1 draws another one each time.
    seed=-1,
    # Algorithms that give the same numbers in each run with the same seed, slower on CUDA; those that there are not
    # are named in warnings.
    deterministic=False,
    cudnn_benchmark=False,
)
