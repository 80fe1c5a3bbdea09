"""Let `python -m pipeline` be the `pipeline` command."""

from pipeline.commands.main import main

if __name__ == "__main__":
    main()
