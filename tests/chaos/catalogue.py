"""The fault tests: what is promised, and how often it is tried."""

from __future__ import annotations

from tests.chaos import damage, inputs, kills, ranks, sharded, shares, stops, storage
from tests.chaos.harness import FaultTest, existing

ONE_PROCESS = (
    FaultTest(
        "kill-random-step",
        "A run killed by SIGKILL at any moment ends, when its command is given again, bit for bit "
        "where an undisturbed run ends.",
        kills.at_random_steps, 50, "steps lost",
    ),
    FaultTest(
        "kill-storm",
        "A run killed 25 times, every other time inside a save, does as well, and loses no more "
        "than one interval of saves a kill.",
        kills.storm, 25, "steps lost",
    ),
    FaultTest(
        "kill-in-save",
        "A kill at a random moment of a save leaves a whole checkpoint at least as new as the "
        "last that a save returned for.",
        kills.inside_a_save, 100,
    ),
    FaultTest(
        "kill-each-write",
        "So does a kill before each single change to the disk that a save makes: open, fsync, "
        "rename, delete.",
        kills.at_each_write, 100,
    ),
    FaultTest(
        "kill-at-the-end",
        "So does a kill between the last step, the weights, the record and the deletion of the "
        "checkpoints.",
        existing("tests/jobs/test_ending.py", "-k", "kill_before_any_change"), 1,
    ),
    FaultTest(
        "kill-in-purge",
        "A kill while old checkpoints are deleted, or while the next start sweeps, leaves the "
        "last ones whole, and the start after it leaves nothing half-written.",
        kills.in_a_purge, 20,
    ),
    FaultTest(
        "resume-points",
        "A resume from the first step, mid-epoch, both sides of an epoch's end and the last step, "
        "by one process or with readers, is exact.",
        kills.resume_points, 12,
    ),
    FaultTest(
        "log-after-a-kill",
        "The log of a killed and resumed run has each step once.",
        inputs.log_of_a_kill, 10,
    ),
    FaultTest(
        "stop-and-go",
        "Ten stops and resumes of one run are exact, and its log has each step once.",
        kills.stop_and_go, 10,
    ),
    FaultTest(
        "order-of-writes",
        "At the rename that shows a checkpoint, every file and its name are on the disk.",
        storage.order_of_writes, 40,
    ),
    FaultTest(
        "truncated-files",
        "Every truncation of a file of a checkpoint is detected before a parameter changes; the "
        "file is named, and an older checkpoint is used.",
        damage.truncations, 24,
    ),
    FaultTest(
        "flipped-bits",
        "Every flipped bit of a checkpoint is detected before a parameter changes.",
        damage.bit_flips, 1000,
    ),
    FaultTest(
        "mixed-files",
        "Missing, additional and swapped files, and files of another step, are detected.",
        damage.mixed_files, 15,
    ),
    FaultTest(
        "all-damaged",
        "If every checkpoint is damaged, the run ends with 1 within 10 s and the reason of each; "
        "nothing is deleted.",
        damage.all_damaged, 20,
    ),
    FaultTest(
        "hostile-files",
        "A hostile or broken weights file is refused in one line and executes nothing.",
        existing("tests/weights/test_untrusted_files.py"), 100,
    ),
    FaultTest(
        "published-files",
        "Checkpoints in the published layout load with the one class that they need; what else "
        "they would import is named and refused.",
        existing("tests/weights/test_published_layout.py"), 20,
    ),
    FaultTest(
        "keyed-draws",
        "Order and draws are functions of seed, epoch and sample id, uniform and independent.",
        existing("tests/data/sampling/test_order.py"), 10,
    ),
    FaultTest(
        "other-runs",
        "A resume with another network, configuration or data is refused with 2 within 5 s, with "
        "the difference.",
        damage.other_runs, 9,
    ),
    FaultTest(
        "broken-images",
        "Broken images are replaced by others that are a function of the seed, each is named "
        "once, and the run completes.",
        inputs.broken_images, 4,
    ),
    FaultTest(
        "too-many-broken",
        "More than a tenth of broken images stops the run.",
        inputs.too_many_broken, 3,
    ),
    FaultTest(
        "foreign-draws",
        "No draw depends on the generators of torch, numpy or Python.",
        inputs.foreign_draws, 10,
    ),
    FaultTest(
        "few-bad-steps",
        "A step with a NaN or infinite loss is skipped and its images are logged.",
        inputs.few_bad_steps, 10,
    ),
    FaultTest(
        "five-bad-steps",
        "Five such steps in a row stop the run with 1; none has moved a parameter.",
        inputs.five_bad_steps, 10,
    ),
    FaultTest(
        "round-bad-steps",
        "`--resume-from STEP --skip-steps N` goes round them once, whatever kills it in between.",
        inputs.round_bad_steps, 10,
    ),
    FaultTest(
        "killed-readers",
        "A reader process that is killed is named and restarted at its position.",
        inputs.killed_readers, 5,
    ),
    FaultTest(
        "disk-full",
        "A disk that is full before or during any file of a save costs this save alone: one line "
        "with what is needed and free, and training goes on.",
        storage.disk_full, 8,
    ),
    FaultTest(
        "failing-writes",
        "So does any single change to the disk that fails by EIO, EROFS, EDQUOT or ENOSPC.",
        storage.failing_writes, 50,
    ),
    FaultTest(
        "three-failed-saves",
        "Three failed saves in a row stop the run with 1; the last good checkpoint resumes.",
        storage.three_failed_saves, 4,
    ),
    FaultTest(
        "stop-on-a-full-disk",
        "A run that is stopped while its disk is full exits with 1, and resumes from the last "
        "good checkpoint.",
        storage.signals_while_full, 4,
    ),
    FaultTest(
        "keep-last",
        "The last k checkpoints are kept whatever deletions fail; those are tried again.",
        storage.keep_last, 15,
    ),
    FaultTest(
        "readers-beside",
        "The weights of a run can be loaded at any moment while it saves and deletes.",
        storage.readers_beside, 1000,
    ),
    FaultTest(
        "async-saves",
        "A run with `--async-save` that is killed or stopped at any moment, or whose disk is full "
        "during a save, ends bit for bit where one without it ends.",
        sharded.async_saves, 20,
    ),
    FaultTest(
        "sharded-order-of-writes",
        "At the rename that shows a sharded checkpoint, every file of every rank is on the disk.",
        sharded.order_of_writes, 20,
    ),
    FaultTest(
        "sharded-files",
        "Truncated, flipped, swapped and missing files of a sharded checkpoint are detected; "
        "hostile ones are refused in one line and execute nothing.",
        existing("tests/runs/test_sharded_files.py"), 100,
    ),
    FaultTest(
        "signals",
        "SIGTERM, SIGUSR1 and Ctrl-C at any moment save the current step within 10 s, exit with "
        "75, 75 and 130, and leave no process.",
        stops.at_any_moment, 30,
    ),
    FaultTest(
        "signals-to-the-group",
        "So does SIGTERM to a run and its four reader processes at once.",
        stops.whole_group, 20,
    ),
    FaultTest(
        "signal-while-data-waits",
        "So does SIGTERM while the run waits for a reader process that hangs.",
        stops.while_data_waits, 3,
    ),
    FaultTest(
        "second-signal",
        "A second signal ends a run within 2 s, and no checkpoint is damaged.",
        stops.second_signal, 9,
    ),
    FaultTest(
        "races",
        "Of two starts in one run directory one runs, the other exits with 2 within 5 s and names "
        "host and process; kill -9 frees the directory at once.",
        stops.races, 50,
    ),
)  # fmt: skip

RANKS = (
    FaultTest(
        "ranks-inputs",
        "Order, crop, flip, mask, drop path, erasing and mixing partner of every sample are the "
        "same for 1, 2, 3 and 4 ranks, 0, 1 and 4 readers and two micro-batches.",
        shares.inputs_of_ranks, 24,
    ),
    FaultTest(
        "ranks-kill",
        "Rank 0, rank 1 or the launcher killed at a random step ends all processes within 10 s, "
        "with the rank's name; the same command ends bit for bit where it would have.",
        ranks.kills, 20,
    ),
    FaultTest(
        "kills-fsdp",
        "The same where the ranks divide the parameters, in sharded checkpoints.",
        ranks.sharded_kills, 10,
    ),
    FaultTest(
        "ranks-kill-launcher",
        "A killed launcher leaves no rank, while they start, train or save.",
        ranks.killed_launcher, 6,
    ),
    FaultTest(
        "ranks-signals",
        "SIGTERM, SIGUSR1 and Ctrl-C to the launcher, to one rank or to all stop every rank at "
        "one step, saved, within 10 s, with 75, 75 and 130.",
        ranks.signals, 12,
    ),
    FaultTest(
        "slurm-requeue",
        "A SLURM job that gets SIGUSR1 saves, is requeued and ends bit for bit where it would "
        "have (stand-ins for sbatch, srun and scontrol).",
        existing("tests/jobs/test_slurm.py"), 1,
    ),
    FaultTest(
        "ranks-second-signal",
        "A second signal ends all ranks within 2 s.",
        ranks.second_signal, 3,
    ),
    FaultTest(
        "ranks-bad-step",
        "A NaN or infinite loss on one rank is skipped by all: no rank moves a parameter.",
        ranks.non_finite_on_one, 4,
    ),
    FaultTest(
        "ranks-five-bad-steps",
        "Five such steps end all ranks with 1, in one line.",
        ranks.five_non_finite_on_one, 2,
    ),
    FaultTest(
        "ranks-frozen",
        "A rank that hangs ends all within 5 s of the time-out, with the stacks of the ranks and "
        "the name of the one that hung.",
        ranks.frozen, 4,
    ),
    FaultTest(
        "ranks-accumulation",
        "Two ranks of one thread equal one with two micro-batches, bit for bit.",
        ranks.equal_to_accumulation, 1,
    ),
    FaultTest(
        "ranks-three-four",
        "Losses and parameters of 3 and 4 ranks are within 1e-4, relative, of one rank's.",
        ranks.other_rank_counts, 2,
    ),
    FaultTest(
        "ranks-changing",
        "A run that goes on with 2, 1, 3, 2 and 4 ranks, killed in between, sees each image once "
        "an epoch; its losses are within 1e-4 of one rank's.",
        ranks.changing_ranks, 4,
    ),
    FaultTest(
        "ranks-races",
        "Of two jobs of two ranks in one run directory one runs; the other leaves no rank.",
        ranks.races, 5,
    ),
    FaultTest(
        "kills-inside-a-sharded-save",
        "A kill of one or both ranks at any moment of a save of both leaves a whole checkpoint at "
        "least as new as the last that the save returned for.",
        sharded.kills_inside_a_save, 20,
    ),
    FaultTest(
        "sharded-disk-full",
        "A disk that is full during any file of such a save, at once or in the thread of "
        "`--async-save`, costs this save alone, on all ranks, and is said after the next step.",
        sharded.disk_full, 8,
    ),
    FaultTest(
        "ranks-soak",
        "Two ranks start and end with 0, and with their record written, every time.",
        ranks.starts_and_exits, 50,
    ),
)  # fmt: skip

TESTS = (*ONE_PROCESS, *RANKS)
