"""What a run is: data sets, backbone, methods, seeds, all checked before any job starts."""

from forceuq.configuration.files import read_configuration, refuse_repeated_keys
from forceuq.configuration.loading import load_configuration
from forceuq.configuration.models import Configuration

__all__ = ["Configuration", "load_configuration", "read_configuration", "refuse_repeated_keys"]
