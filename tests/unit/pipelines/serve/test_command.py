"""How `blend serve` waits for its end; no service runs here."""

import subprocess
import sys

WAIT = """
import os, signal, threading
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job that a script has started with `&`
from llm_blender_ray.pipelines.interruption import install
install()
from llm_blender_ray.pipelines.serve.command import until_interrupted
installed = signal.getsignal(signal.SIGTERM)

def end():
    while signal.getsignal(signal.SIGTERM) in (installed, signal.SIG_DFL):
        pass  # it does not wait yet
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end).start()
until_interrupted()
print("ended")
"""


def test_a_signal_that_is_ignored_ends_nothing_and_the_other_one_ends_it_in_order() -> None:
    done = subprocess.run([sys.executable, "-c", WAIT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
