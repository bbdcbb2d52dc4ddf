"""``python -m forceuq`` is the ``forceuq`` command."""

from forceuq.commands import main

if __name__ == "__main__":
    main()
