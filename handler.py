"""RunPod's entry point: `python handler.py`; see docs/guides/runpod.md."""

from runners.runpod.handler import main

if __name__ == "__main__":
    main()
