"""``python -m gigavim``."""

from gigavim.cli import main

if __name__ == "__main__":
    main()
