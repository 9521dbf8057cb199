"""Where a picture that a command is asked for goes."""

from typing import TYPE_CHECKING

from rtrain.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_picture(figure: "Figure", path: str) -> None:
    """Save it as a PNG.

    Raises:
        ConfigError: a path that cannot be written.
    """
    try:
        figure.savefig(path, dpi=200)
    except OSError as error:
        raise ConfigError(f"--picture: {path!r} cannot be written ({error.strerror}). Give another path") from None


def check_picture(path: str) -> None:
    """Refuse what is no PNG, before anything is computed.

    Raises:
        ConfigError: another ending.
    """
    if not path.endswith(".png"):
        raise ConfigError(f"--picture: {path!r} does not end in .png, the only kind that is drawn. Give FILE.png")
