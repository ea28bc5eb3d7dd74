"""``python -m uniflight_mp`` is ``uniflight-mp``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="uniflight-mp")
