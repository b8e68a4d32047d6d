"""The protobuf messages of BuildKit's API, as far as they are used here.

Fields that are not listed are skipped on reading, as protobuf has it. Names and numbers are those of
BuildKit's `control.proto`, `gateway.proto`, `worker.proto`, `filesync.proto`, `secrets.proto`,
`auth.proto`, `ssh.proto`, `ops.proto`, of containerd's `content.proto` and of fsutil's `wire.proto` and
`stat.proto`; they are what is on the wire.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

_PACKAGE = "wherry.buildkit"
_SCHEMA = """
Empty
BytesMessage: 1 data bytes
Detail: 1 type_url string, 2 value bytes
Status: 1 code int32, 2 message string, 3 details *Detail
Exporter: 1 Type string, 2 Attrs map string
CacheOptionsEntry: 1 Type string, 2 Attrs map string
CacheOptions: 4 Exports *CacheOptionsEntry, 5 Imports *CacheOptionsEntry
SolveRequest: 1 Ref string, 3 ExporterDeprecated string, 4 ExporterAttrsDeprecated map string, 5 Session
    string, 6 Frontend string, 7 FrontendAttrs map string, 8 Cache CacheOptions, 9 Entitlements *string, 11
    Internal bool, 13 Exporters *Exporter
SolveResponse: 1 ExporterResponse map string
StatusRequest: 1 Ref string
Vertex: 1 digest string, 2 inputs *string, 3 name string, 4 cached bool, 5 started Timestamp, 6 completed
    Timestamp, 7 error string
VertexStatus: 1 ID string, 2 vertex string, 3 name string, 4 current int64, 5 total int64, 6 timestamp
    Timestamp, 7 started Timestamp, 8 completed Timestamp
VertexLog: 1 vertex string, 2 timestamp Timestamp, 3 stream int64, 4 msg bytes
SourceInfo: 1 filename string, 2 data bytes
Position: 1 line int32, 2 character int32
Range: 1 start Position, 2 end Position
VertexWarning: 1 vertex string, 2 level int64, 3 short bytes, 4 detail *bytes, 5 url string, 6 info
    SourceInfo, 7 ranges *Range
StatusResponse: 1 vertexes *Vertex, 2 statuses *VertexStatus, 3 logs *VertexLog, 4 warnings *VertexWarning
Platform: 1 Architecture string, 2 OS string, 3 Variant string
BuildkitVersion: 1 package string, 2 version string, 3 revision string
WorkerRecord: 1 ID string, 2 Labels map string, 3 platforms *Platform, 5 BuildkitVersion BuildkitVersion
ListWorkersResponse: 1 record *WorkerRecord
InfoResponse: 1 buildkitVersion BuildkitVersion
UsageRecord: 1 ID string, 2 Mutable bool, 3 InUse bool, 4 Size int64, 6 CreatedAt Timestamp, 7 LastUsedAt
    Timestamp, 8 UsageCount int64, 9 Description string, 10 RecordType string, 11 Shared bool, 12 Parents
    *string
DiskUsageRequest: 1 filter *string
DiskUsageResponse: 1 record *UsageRecord
PruneRequest: 1 filter *string, 2 all bool, 3 keepDuration int64, 4 reservedSpace int64, 5 maxUsedSpace
    int64, 6 minFreeSpace int64
APICap: 1 ID string, 2 Enabled bool
PongResponse: 1 FrontendAPICaps *APICap, 2 LLBCaps *APICap, 3 Workers *WorkerRecord
Definition: 1 def *bytes, 2 metadata map Empty
Op: 1 inputs *Input, 3 source SourceOp
Input: 1 digest string, 2 index int64
SourceOp: 1 identifier string
Ref: 1 id string, 2 def Definition
RefMap: 1 refs map Ref
Result: 3 ref Ref, 4 refs RefMap, 10 metadata map bytes
ReturnRequest: 1 result Result, 2 error Status
GatewaySolveRequest: 1 Definition Definition, 2 Frontend string, 3 FrontendOpt map string, 13 FrontendInputs
    map Definition
GatewaySolveResponse: 3 result Result
RefRequest: 1 Ref string
Stat: 1 path string, 2 mode uint32, 3 uid uint32, 4 gid uint32, 5 size int64, 6 modTime int64, 7 linkname
    string, 8 devmajor int64, 9 devminor int64, 10 xattrs map bytes
Packet: 1 type int32, 2 stat Stat, 3 ID uint32, 4 data bytes
GetSecretRequest: 1 ID string
CheckAgentRequest: 1 ID string
CredentialsRequest: 1 Host string
CredentialsResponse: 1 Username string, 2 Secret string
ReadContentRequest: 1 digest string, 2 offset int64, 3 size int64
ReadContentResponse: 1 offset int64, 2 data bytes
WriteContentRequest: 1 action int32, 2 ref string, 3 total int64, 4 expected string, 5 offset int64, 6 data
    bytes
WriteContentResponse: 1 action int32, 4 offset int64, 5 total int64, 6 digest string
HealthCheckRequest: 1 service string
HealthCheckResponse: 1 status int32
"""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
}


def _set_type(field: descriptor_pb2.FieldDescriptorProto, name: str) -> None:
    if name in _SCALARS:
        field.type = _SCALARS[name]
        return
    field.type = _Field.TYPE_MESSAGE
    field.type_name = ".google.protobuf.Timestamp" if name == "Timestamp" else f".{_PACKAGE}.{name}"


def _add_field(message: descriptor_pb2.DescriptorProto, text: str) -> None:
    number, name, *rest = text.split()
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if rest[0] != "map":
        if rest[0].startswith("*"):
            field.label = _Field.LABEL_REPEATED
        _set_type(field, rest[0].removeprefix("*"))
        return
    entry = message.nested_type.add(name=f"{name[0].upper()}{name[1:]}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    _set_type(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), rest[1])
    field.label = _Field.LABEL_REPEATED
    field.type = _Field.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="wherry/buildkit.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(timestamp_pb2.DESCRIPTOR.name)
    for line in _SCHEMA.replace("\n    ", " ").strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for text in filter(None, fields.split(",")):
            _add_field(message, text)
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
_pool.AddSerializedFile(_file().SerializeToString())
_timestamp = message_factory.GetMessageClass(_pool.FindMessageTypeByName("google.protobuf.Timestamp"))
_classes = message_factory.GetMessageClassesForFiles(["wherry/buildkit.proto"], _pool)


def __getattr__(name: str) -> Any:
    """The class of a message by its name in the schema, and `Timestamp`."""
    if name == "Timestamp":
        return _timestamp
    try:
        return _classes[f"{_PACKAGE}.{name}"]
    except KeyError:
        raise AttributeError(name)
