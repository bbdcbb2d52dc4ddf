"""The label in a Parquet file's metadata that says what the file is, and the check of it on reading.

Under the key ``forceuq`` stands a JSON object ``{"schema": name, "version": n, ...}``; a reader refuses any
other schema or version.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forceuq.errors import DataError

METADATA_KEY = b"forceuq"


def schema_metadata(schema: str, version: int, fields: Mapping[str, Any] | None = None) -> dict[bytes, bytes]:
    """Return Parquet metadata that names ``schema`` and ``version``, with ``fields`` beside them."""
    value = {**(fields or {}), "schema": schema, "version": version}
    return {METADATA_KEY: json.dumps(value, sort_keys=True, allow_nan=False).encode()}


def open_parquet(path: str | Path, schema: str, version: int) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """Open a Parquet file that must be of ``schema`` and ``version``; return it and its metadata's object.

    Raises:
        DataError: the file is missing, damaged, not forceuq's, or of another schema or version.
    """
    try:
        parquet = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise DataError("there is no such file; run the step that writes it", file=path) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a whole Parquet file ({error}); delete it and make it again", file=path) from error
    metadata = parquet.schema_arrow.metadata or {}
    if METADATA_KEY not in metadata:
        raise DataError(f"not written by forceuq; a file of schema '{schema}' is needed here", file=path)
    try:
        value = json.loads(metadata[METADATA_KEY])
    except ValueError as error:
        raise DataError(f"damaged metadata ({error}); delete it and make it again", file=path) from error
    if (value.get("schema"), value.get("version")) != (schema, version):
        raise DataError(
            f"is of schema '{value.get('schema')}' version {value.get('version')}; '{schema}' version "
            f"{version} is needed here (delete the file and make it again with this version of forceuq)",
            file=path,
        )
    return parquet, value
