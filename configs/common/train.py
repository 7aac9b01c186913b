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
    # Largest norm of all gradients together; None does not clip.
    clip_grad_norm=None,
    checkpointer=dict(period=5000, max_to_keep=10),
    eval_period=5000,
    log_period=20,
    seed=-1,
    cudnn_benchmark=False,
)
