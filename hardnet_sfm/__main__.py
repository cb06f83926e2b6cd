"""`python -m hardnet_sfm`."""

from hardnet_sfm.cli import main

main()
