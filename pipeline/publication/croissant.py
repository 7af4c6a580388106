"""Describe a snapshot in Croissant 1.0: JSON-LD that dataset search engines and loaders read.

Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa

from manifests.snapshot import TABLES, Snapshot
from manifests.tables import CLIPS
from manifests.terms import Terms
from pipeline.publication.citations import citations
from shards.files import read_file, written_at

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification prescribes."""


def croissant(snapshot: Snapshot, terms: Terms, name: str, url: str) -> bytes:
    """Return the metadata as JSON: the tables, the shards, and the columns of the table of clips.

    url: where the dataset is found; "" if it is only in a folder
    """
    licences = [*terms.frames, *([terms.tracks] if terms.tracks else [])]
    written = written_at(snapshot.folder / "settings.json").date()
    described: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"{len(snapshot.clips):,} video clips with point tracks, in WebDataset "
        "shards with Parquet tables.",
        "license": [licence.url or licence.id for licence in licences],
        "url": url,
        "creator": {"@type": "sc:Organization", "name": url.split("/")[-2] if url else "unknown"},
        "datePublished": written.isoformat(),
        "version": f"{int(snapshot.name)}.0.0",
        "citeAs": "; ".join(citations(snapshot)),
        "distribution": [*(_table(snapshot, table) for table in TABLES), _SHARDS],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "clips",
                "description": "One record per clip.",
                "field": [_field(column) for column in CLIPS],
            }
        ],
    }
    return json.dumps(described, indent=1, ensure_ascii=False).encode()


_SHARDS = {
    "@type": "cr:FileSet",
    "@id": "shards",
    "description": "The clips: description, tracks and frames, in WebDataset's layout.",
    "encodingFormat": "application/x-tar",
    "includes": "shards/*.tar",
}


def _table(snapshot: Snapshot, table: str) -> dict[str, Any]:
    """Describe a table's file."""
    data = read_file(snapshot.folder / f"{table}.parquet")
    return {
        "@type": "cr:FileObject",
        "@id": f"{table}.parquet",
        "name": f"{table}.parquet",
        "contentUrl": f"snapshots/{snapshot.name}/{table}.parquet",
        "encodingFormat": "application/x-parquet",
        "contentSize": f"{len(data)} B",
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _field(column: pa.Field) -> dict[str, Any]:
    """Describe a column of the table of clips."""
    repeated = pa.types.is_list(column.type)
    value = column.type.value_type if repeated else column.type
    if pa.types.is_floating(value):
        kind = "sc:Float"
    elif pa.types.is_integer(value):
        kind = "sc:Integer"
    else:
        kind = "sc:Boolean" if pa.types.is_boolean(value) else "sc:Text"
    source = {"fileObject": {"@id": "clips.parquet"}, "extract": {"column": column.name}}
    return {
        "@type": "cr:Field",
        "@id": f"clips/{column.name}",
        "dataType": kind,
        **({"repeated": True} if repeated else {}),
        "source": source,
    }
