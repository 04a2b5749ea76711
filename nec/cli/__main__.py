"""``python -m nec.cli``."""

from nec.cli import main

main()
