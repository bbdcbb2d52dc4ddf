"""What clusters do to jobs, done to a real one: each run ends complete, with the metrics of the local run.

Every test starts from a finished project and takes away what a run must do again, so that a run has about four jobs.
"""

import os
import shutil
import subprocess
from datetime import datetime

import psutil
import pytest
from cluster import wait_until
from project import METRICS, PATIENCE

pytestmark = [pytest.mark.slurm, pytest.mark.slurm_faults]


def states(jobs):
    """Return the jobs' states, the oldest first."""
    return [job.state for job in jobs]


def epochs(project, job):
    """Return the epochs that a job has trained."""
    return [int(event.what.split()[1]) for event in project.journal("fit", "epoch") if event.job == job]


def assert_nothing_half_written(project):
    """No temporary file is left, and a fit or prediction that exists is whole: it has the file that is written last."""
    results = project.folder / "results"
    assert not list(results.rglob("*.part*"))
    for folder in results.glob("small/fits/*/*/*/seed*"):
        assert (folder / "options.json").exists(), folder


def test_time_limit_in_the_middle_of_training(cluster, project):
    project.forget_fits()
    project.fault("fit", last_epoch_of_first_job=5)
    run = project.start(cluster, METRICS)
    job = project.wait_for(run, "fit", "epoch 5").job
    # The limit is brought to where the job is, instead of waiting until the job is there.
    cluster.run("scontrol", "update", f"jobid={job}", "timelimit=1")
    run.succeed()
    first, second = project.jobs(cluster, "fit")
    assert states([first, second]) == ["TIMEOUT", "COMPLETED"]
    assert second.memory_mb == first.memory_mb, "a time-out says nothing of the memory"
    assert epochs(project, first.id) == [1, 2, 3, 4, 5]
    assert epochs(project, second.id) == [6, 7, 8, 9, 10, 11, 12]
    assert project.metrics() == project.wanted


def test_memory_limit_exceeded(cluster, project):
    project.forget_fits()
    project.hold("fit")
    run = project.start(cluster, METRICS)
    project.wait_for(run, "fit")
    (first,) = project.jobs(cluster, "fit")
    project.fault("fit", memory_mb=round(1.1 * first.memory_mb))
    project.release("fit")
    run.succeed()
    first, second = project.jobs(cluster, "fit")
    # Without cgroups Slurm's own watch kills the job, which is then called failed.
    assert first.state in ("FAILED", "OUT_OF_MEMORY")
    assert second.state == "COMPLETED"
    assert second.memory_mb >= 1.5 * first.memory_mb
    assert project.metrics() == project.wanted


def test_node_crashes_under_a_caching_shard_and_under_a_fit(cluster, project):
    project.forget_fits()
    features = next((project.folder / "results/cache/features").glob("*/*/far"))
    shutil.rmtree(features)
    for stage in ("fit", "backbone"):
        project.hold(stage)
    run = project.start(cluster, METRICS)
    fit, caching = (project.wait_for(run, stage) for stage in ("fit", "backbone"))
    for node in {fit.node, caching.node}:
        cluster.crash_node(node)
    assert not (features / "manifest.json").exists()
    wait_until(lambda: cluster.node_state(fit.node).startswith("down"), 300, "the controller did not notice")
    if fit.node != caching.node:
        wait_until(lambda: cluster.node_state(caching.node).startswith("down"), 300, "the controller did not notice")
        cluster.start_node(fit.node)
    for stage in ("fit", "backbone"):
        project.release(stage)
    run.succeed()
    assert len(project.journal("fit", "begin")) == 2
    assert len(project.journal("backbone", "begin")) == 2
    assert project.journal("backbone", "begin")[-1].node != caching.node
    assert project.metrics() == project.wanted


def test_preempted_then_its_node_drained(cluster, project):
    project.forget_fits()
    project.hold("fit")
    run = project.start(cluster, METRICS)
    taken = project.wait_for(run, "fit").node
    whole = ("-p", "urgent", "-w", taken, "--exclusive", "--output=/dev/null")
    urgent = cluster.run("sbatch", "--parsable", *whole, "--wrap=sleep 20").strip()
    wait_until(lambda: cluster.job(urgent).state == "RUNNING", 180, "the urgent job did not get the node")
    drained = project.wait_for(run, "fit", count=2).node
    cluster.drain(drained)
    project.release("fit")
    run.succeed()
    # What runs on a draining node may end there; nothing more is started on it.
    after = [job for rule in ("predict", "group_evaluate") for job in project.jobs(cluster, rule)]
    assert after
    assert all(job.node != drained for job in after)
    assert len(project.journal("fit", "end")) == 1
    assert project.metrics() == project.wanted


def test_controller_restarted(cluster, project):
    project.forget_fits()
    project.hold("fit")
    run = project.start(cluster, METRICS)
    project.wait_for(run, "fit")
    cluster.stop_controller()
    project.release("fit")  # the fit ends, and its successors should be sent, while nobody answers
    project.wait_for(run, "fit", "end")
    cluster.start_controller()
    run.succeed()
    assert states(project.jobs(cluster, "fit")) == ["COMPLETED"]
    assert project.metrics() == project.wanted


def test_bad_node_is_left_out(cluster, project):
    project.forget_fits()
    project.hold("fit")
    run = project.start(cluster, METRICS)
    bad = project.wait_for(run, "fit").node
    project.fault("fit", bad_node=bad)
    project.release("fit")
    run.succeed()
    attempts = project.journal("fit", "begin")
    assert len(attempts) == 2
    assert attempts[-1].node != bad
    assert project.metrics() == project.wanted


def test_user_interrupts_the_run(cluster, project):
    project.forget_fits()
    project.hold("fit")
    run = project.start(cluster, METRICS)
    project.wait_for(run, "fit")
    run.interrupt()
    run.fail()
    wait_until(lambda: not cluster.run("squeue", "-h"), 60, "jobs went on after the run was interrupted")
    assert_nothing_half_written(project)
    project.release("fit")
    project.start(cluster, METRICS).succeed()
    assert states(project.jobs(cluster, "fit")) == ["CANCELLED", "COMPLETED"]
    assert project.metrics() == project.wanted


def test_user_cancels_a_job(cluster, project):
    project.forget_fits()
    project.hold("fit")
    run = project.start(cluster, METRICS)
    job = project.wait_for(run, "fit").job
    cluster.run("scancel", job)
    run.fail()
    assert len(project.journal("fit", "begin")) == 1, "a job that its user cancelled was started again"
    assert_nothing_half_written(project)
    project.release("fit")
    project.start(cluster, METRICS).succeed()
    assert project.metrics() == project.wanted


def test_login_session_killed(cluster, project):
    project.forget_fits()
    project.hold("fit")
    run = project.start(cluster, METRICS)
    project.wait_for(run, "fit")
    run.kill()
    second = project.start(cluster, METRICS)
    second.fail()  # the killed run's lock: no two writers by accident
    (job,) = project.jobs(cluster, "fit")
    assert job.state == "RUNNING"
    project.start(cluster, "--unlock").succeed()  # what Snakemake tells the user to do
    third = project.start(cluster, METRICS)
    project.wait_for(third, "fit", count=2)
    project.release("fit")
    third.succeed()
    first, second = project.jobs(cluster, "fit")
    ended, begun = (datetime.fromisoformat(t) for t in (first.fields["EndTime"], second.fields["StartTime"]))
    assert ended <= begun
    assert project.metrics() == project.wanted


def test_two_configurations_at_once_share_their_caches(cluster, project):
    project.forget_fits()
    features = next((project.folder / "results/cache/features").glob("*/*/far"))
    shutil.rmtree(features)
    (project.folder / "other.yaml").write_text("run: other\n")
    project.hold("backbone")
    first = project.together(cluster)
    project.wait_for(first, "backbone")
    second = project.together(cluster, config=("other.yaml",))
    wait_until(lambda: "Another run is making caches" in second.text(), PATIENCE, "the second run did not wait")
    project.release("backbone")
    for run in (first, second):
        run.succeed()
    assert len(project.journal("backbone", "begin")) == 1, "both runs made the same cache"
    assert len(project.jobs(cluster, "fit")) == 2
    assert project.metrics() == project.metrics("other") == project.wanted


@pytest.fixture
def small_disk(project):
    """The results on a file system of their own that has no room left; gives what makes it larger."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    results = project.folder / "results"
    shutil.move(results, project.folder / "moved")
    results.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", results], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount a file system")
    shutil.copytree(project.folder / "moved", results, dirs_exist_ok=True, copy_function=shutil.copy2)
    project.forget_fits()
    used = sum(file.stat().st_blocks * 512 for file in results.rglob("*"))
    pages = used // 4096 + 12
    subprocess.run(["mount", "-o", f"remount,size={pages * 4096}", results], check=True)
    yield lambda: subprocess.run(["mount", "-o", "remount,size=256m", results], check=True)
    subprocess.run(["umount", "--lazy", results], check=True)


def test_full_disk(cluster, project, small_disk):
    project.start(cluster, METRICS, "--retries", "0").fail()
    # The rule's own log lies on the full disk; Slurm's does not.
    (log,) = (project.folder / "logs/slurm/rule_fit").rglob("*.log")
    assert "No space left on device" in log.read_text()
    assert not (project.folder / METRICS).exists()
    assert_nothing_half_written(project)
    small_disk()
    project.start(cluster, METRICS).succeed()
    assert project.metrics() == project.wanted


def test_killed_processes_of_a_job(cluster, project):
    """A job whose processes something kills on its node is sent again."""
    project.forget_fits()
    project.hold("fit")
    run = project.start(cluster, METRICS)
    job = project.wait_for(run, "fit").job
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("SLURM_JOB_ID") == job:
            process.kill()
    project.wait_for(run, "fit", count=2)
    project.release("fit")
    run.succeed()
    assert states(project.jobs(cluster, "fit")) == ["FAILED", "COMPLETED"]
    assert project.metrics() == project.wanted
