"""The optional package lifelines, imported when asked for."""

from types import ModuleType

from histoscribe.errors import MissingExtra


def import_lifelines() -> ModuleType:
    """The package with the parts that are used.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        import lifelines
        import lifelines.statistics
        import lifelines.utils
    except ImportError as error:
        raise MissingExtra(
            "C-index, Kaplan-Meier curves and the log-rank test are computed by lifelines, which "
            "is not installed; install it with pip install 'histoscribe[survival]'"
        ) from error
    return lifelines
