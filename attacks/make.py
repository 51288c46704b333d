#!/usr/bin/env python3
"""Builds this folder: small hostile model files, one broken rule each, the list of errors that must refuse them, and
the table in README.md. Python 3, standard library only.

    python3 attacks/make.py            # write everything
    python3 attacks/make.py --check    # exit 1 if a committed file differs from what would be written

A case is one change away from a file in control/, which must open. `broke` says who was hit by it (issue numbers are
llama.cpp's unless named), `rule` names the variant of `hob_files::FileError` that refuses it, `phrase` is what the
error must say.
"""

import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent
MAX_FILE_BYTES = 4096
MAX_FOLDER_BYTES = 300 * 1024

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
MAX64 = 2**64 - 1

# ------------------------------------------------------------------------------------------------------------- GGUF


def u32(x):
    return struct.pack("<I", x)


def u64(x):
    return struct.pack("<Q", x)


def text(s, length=None):
    """A GGUF string; `length` lies about its size."""
    raw = s if isinstance(s, bytes) else s.encode()
    return u64(len(raw) if length is None else length) + raw


def kv(key, kind, payload, key_length=None):
    return text(key, key_length) + u32(kind) + payload


def array(kind, count, payload=b""):
    return u32(kind) + u64(count) + payload


def tensor(name, dims, kind=0, offset=0, n_dims=None, name_length=None):
    head = text(name, name_length) + u32(len(dims) if n_dims is None else n_dims)
    return head + b"".join(u64(d) for d in dims) + u32(kind) + u64(offset)


ARCH = kv("general.architecture", STR, text("llama"))
W = tensor("w", [4, 2])  # 4 columns, 2 rows of f32: 32 bytes
DATA = bytes(32)


def gguf(kvs=(ARCH,), tensors=(W,), data=DATA, magic=b"GGUF", version=3, n_tensors=None, n_kv=None, align=32):
    head = magic + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors) + u64(len(kvs) if n_kv is None else n_kv)
    head += b"".join(kvs) + b"".join(tensors)
    if data is None:
        return head
    return head + bytes(-len(head) % align) + data


def big_endian():
    name, arch = b"general.architecture", b"llama"
    head = b"GGUF" + struct.pack(">IQQ", 3, 0, 1)
    return head + struct.pack(">Q", len(name)) + name + struct.pack(">IQ", STR, len(arch)) + arch


def nested(depth):
    """An array of one array of one array ... of no u8."""
    return b"".join(array(ARR, 1) for _ in range(depth)) + array(U8, 0)


def align_kv(kind, payload):
    return kv("general.alignment", kind, payload)


WHOLE = gguf()
TABLE_START = len(gguf(tensors=(), data=None))
DATA_START = len(WHOLE) - len(DATA)

GGUF_CASES = [
    # name, bytes, broke, rule, phrase
    ("empty", b"", "a download that never started", "NotAModel", "the file is empty"),
    ("bad-magic", gguf(magic=b"GGUX"), "test-gguf HEADER_BAD_MAGIC", "NotAModel", "not a model file"),
    ("old-ggjt", b"tjgg" + WHOLE[4:], "loaders that guess at old formats", "NotAModel", "before GGUF"),
    ("html-page", b"<!DOCTYPE html><html><body>Access denied</body></html>", "an error page saved as a model", "NotAModel", "web page"),
    ("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a clone without git-lfs", "NotAModel", "Git LFS pointer"),
    ("version-0", gguf(version=0), "test-gguf HEADER_BAD_VERSION_0", "Version", "GGUF version 0"),
    ("version-1", gguf(version=1), "test-gguf HEADER_BAD_VERSION_1: 32-bit counts read as 64-bit", "Version", "GGUF version 1"),
    ("version-999", gguf(version=999), "test-gguf HEADER_BAD_VERSION_FUTURE", "Version", "GGUF version 999"),
    ("big-endian", big_endian(), "counts read byte-swapped: 2^56 keys", "BigEndian", "big-endian"),
    ("magic-swapped", b"FUGG" + WHOLE[4:], "counts read byte-swapped", "NotAModel", "swapped bytes"),
    ("tensor-count-max", gguf(n_tensors=MAX64), "test-gguf HEADER_BAD_N_TENSORS; candle 3533 vec![0; n]", "Limit", "the tensor count"),
    ("tensor-count-sign-bit", gguf(n_tensors=2**63), "a count read as negative", "Limit", "the tensor count"),
    ("tensor-count-over-bytes", gguf(n_tensors=1_000_000), "CVE-2025-66960 (Ollama): memory reserved for a claimed count", "Truncated", "cut short"),
    ("tensor-count-one-more", gguf(n_tensors=2), "a table that runs into the data", "EmptyName", "is empty"),
    ("kv-count-max", gguf(n_kv=MAX64), "test-gguf HEADER_BAD_N_KV", "Limit", "the metadata count"),
    ("kv-count-over-bytes", gguf(n_kv=16_000), "memory reserved for a claimed count", "Truncated", "cut short"),
    ("kv-count-one-less", gguf(kvs=(ARCH, kv("a", U8, b"\1")), n_kv=1), "a key read as a tensor", "TensorType", "unknown ggml type 257"),
    ("key-length-max", gguf(kvs=(kv("a", U8, b"\1", key_length=MAX64),)), "test-gguf KV_BAD_KEY_SIZE", "Limit", "string length"),
    ("key-length-sign-bit", gguf(kvs=(kv("a", U8, b"\1", key_length=2**63),)), "a length read as negative", "Limit", "string length"),
    ("key-length-over-file", gguf(kvs=(kv("a", U8, b"\1", key_length=1000),)), "a read past the end", "Truncated", "metadata key number 0"),
    ("key-too-long", gguf(kvs=(kv("k" * 1100, U8, b"\1"),)), "fixed key buffers", "Limit", "string length"),
    ("key-empty-37-bytes", gguf(kvs=(kv("", U8, b"\1"),), tensors=(), data=None), "24884: abort on a 37-byte file; test-gguf KV_EMPTY_KEY", "EmptyName", "is empty"),
    ("key-nul", gguf(kvs=(kv("a\0b", U8, b"\1"),)), "names cut at NUL compare equal", "BadName", "control characters"),
    ("key-not-utf8", gguf(kvs=(kv(b"\xff\xfe", U8, b"\1"),)), "bytes printed unchecked", "NotUtf8", "not valid UTF-8"),
    ("key-duplicate", gguf(kvs=(ARCH, ARCH)), "test-gguf KV_DUPLICATE_KEY: two readers see two models", "DuplicateName", "appears twice"),
    ("value-type-13", gguf(kvs=(kv("a", 13, b"\1"),)), "test-gguf KV_BAD_TYPE", "ValueType", "unknown value type 13"),
    ("value-type-max", gguf(kvs=(kv("a", 2**32 - 1, b"\1"),)), "a type used as an array index", "ValueType", "unknown value type"),
    ("bool-2", gguf(kvs=(kv("a", BOOL, b"\2"),)), "undefined behavior of a bool that is neither", "BadBool", "0 or 1"),
    ("bool-array-255", gguf(kvs=(kv("a", ARR, array(BOOL, 2, b"\1\xff")),)), "the same inside an array", "BadBool", "0 or 1"),
    ("string-length-max", gguf(kvs=(kv("a", STR, text("x", MAX64)),)), "length + 1 wraps to 0", "Limit", "string length"),
    ("string-length-sign-bit", gguf(kvs=(kv("a", STR, text("x", 2**63)),)), "a length read as negative", "Limit", "string length"),
    ("string-length-over-file", gguf(kvs=(kv("a", STR, text("x", 50_000_000)),)), "50 MB reserved for a short file", "Truncated", "cut short"),
    ("string-not-utf8", gguf(kvs=(kv("a", STR, text(b"\xc3\x28")),)), "invalid text handed on", "NotUtf8", "not valid UTF-8"),
    ("array-length-max", gguf(kvs=(kv("a", ARR, array(F32, MAX64)),)), "test-gguf KV_BAD_VALUE_SIZE (removed there: > 1 TB)", "Limit", "array length"),
    ("array-length-wraps", gguf(kvs=(kv("a", ARR, array(U64, 2**61 + 1, bytes(8))),)), "count * 8 wraps to 8", "Limit", "array length"),
    ("array-length-over-file", gguf(kvs=(kv("a", ARR, array(U64, 16_000_000, bytes(8))),)), "128 MB reserved for a short file", "Truncated", "cut short"),
    ("array-strings-over-file", gguf(kvs=(kv("tokenizer.ggml.tokens", ARR, array(STR, 16_000_000)),)), "one string object reserved per claimed token", "Truncated", "tokenizer.ggml.tokens"),
    ("array-string-length-max", gguf(kvs=(kv("a", ARR, array(STR, 2, text("x") + text("y", MAX64))),)), "a bad length inside an array", "Limit", "string length"),
    ("array-string-not-utf8", gguf(kvs=(kv("a", ARR, array(STR, 2, text(b"\xc3") + text(b"\xa9"))),)), "two halves of one letter pass a check of the joined text", "NotUtf8", "string 0"),
    ("array-element-type-13", gguf(kvs=(kv("a", ARR, array(13, 1, bytes(8))),)), "size 0 looked up for an unknown type", "ValueType", "unknown value type 13"),
    ("array-nested-3", gguf(kvs=(kv("a", ARR, nested(3)),)), "unbounded recursion", "Limit", "nesting"),
    ("array-nested-300", gguf(kvs=(kv("a", ARR, nested(300)),)), "stack overflow", "Limit", "nesting"),
    ("array-nested-length-max", gguf(kvs=(kv("a", ARR, array(ARR, MAX64)),)), "one object reserved per claimed row", "Limit", "array length"),
    ("array-nested-over-file", gguf(kvs=(kv("a", ARR, array(ARR, 16_000_000)),)), "one object reserved per claimed row", "Truncated", "cut short"),
    ("align-zero", gguf(kvs=(align_kv(U32, u32(0)),)), "divide by zero (candle 3876)", "Alignment", "power of two"),
    ("align-one", gguf(kvs=(align_kv(U32, u32(1)),)), "below the format's minimum of 8", "Alignment", "power of two"),
    ("align-not-power", gguf(kvs=(align_kv(U32, u32(24)),)), "test-gguf KV_BAD_ALIGN, DATA_BAD_ALIGN", "Alignment", "power of two"),
    ("align-huge", gguf(kvs=(align_kv(U32, u32(2**31)),)), "padding of 2 GiB", "Alignment", "power of two"),
    ("align-u64", gguf(kvs=(align_kv(U64, u64(32)),)), "test-gguf KV_WRONG_TYPE_ALIGN: an assertion kills the process", "WrongType", "general.alignment"),
    ("align-string", gguf(kvs=(align_kv(STR, text("32")),)), "a string read as a number", "WrongType", "general.alignment"),
    ("align-array", gguf(kvs=(align_kv(ARR, array(U32, 1, u32(32))),)), "an array read as a number", "WrongType", "general.alignment"),
    ("align-inconsistent", gguf(kvs=(align_kv(U32, u32(64)),), tensors=(W, tensor("v", [4, 2], offset=32)), data=bytes(64), align=64), "test-gguf TENSORS_INCONSISTENT_ALIGN", "Misaligned", "multiple of the alignment 64"),
    ("name-length-max", gguf(tensors=(tensor("w", [4, 2], name_length=MAX64),)), "test-gguf TENSORS_BAD_NAME_SIZE", "Limit", "string length"),
    ("name-too-long", gguf(tensors=(tensor("w" * 300, [4, 2]),)), "names cut to 64 bytes compare equal", "Limit", "string length"),
    ("name-empty", gguf(tensors=(tensor("", [4, 2]),)), "a tensor nobody can ask for", "EmptyName", "is empty"),
    ("name-nul", gguf(tensors=(tensor("w\0x", [4, 2]),)), "names cut at NUL compare equal", "BadName", "control characters"),
    ("name-escape-sequence", gguf(tensors=(tensor("\x1b]0;owned\x07", [4, 2]),)), "terminal control through `show`", "BadName", "control characters"),
    ("name-duplicate", gguf(tensors=(W, tensor("w", [4, 2], offset=32)), data=bytes(64)), "test-gguf TENSORS_DUPLICATE_NAME", "DuplicateName", "appears twice"),
    ("dims-5", gguf(tensors=(tensor("w", [4, 2, 1, 1, 1]),)), "test-gguf TENSORS_BAD_N_DIMS", "Limit", "dimensions"),
    ("dims-max", gguf(tensors=(tensor("w", [4, 2], n_dims=2**32 - 1),)), "a write past a fixed array of 4", "Limit", "dimensions"),
    ("dim-zero-57-bytes", gguf(kvs=(), tensors=(tensor("w", [0]),), data=None), "24263, ggml 1517: SIGFPE from a tiny file", "ZeroDimension", "is zero"),
    ("dim-zero-73-bytes", gguf(kvs=(), tensors=(tensor("w", [4, 0, 2]),), data=None), "24263: a 73-byte file, the zero among other dimensions", "ZeroDimension", "is zero"),
    ("dim-zero-hides-overflow", gguf(tensors=(tensor("w", [2**62, 2**62, 0]),)), "a product check skipped because one factor is 0", "ZeroDimension", "is zero"),
    ("dim-negative", gguf(tensors=(tensor("w", [MAX64, 2]),)), "test-gguf TENSORS_BAD_SHAPE: -1", "SizeOverflow", "overflows"),
    ("elements-overflow", gguf(tensors=(tensor("w", [2**32, 2**32]),)), "test-gguf TENSORS_NE_TOO_BIG; 27203", "SizeOverflow", "overflows"),
    ("elements-wrap-to-8", gguf(tensors=(tensor("w", [2**62 + 1, 4, 2]),)), "14595, 18674, 19856: the wrapped product fits the file", "SizeOverflow", "overflows"),
    ("bytes-overflow", gguf(tensors=(tensor("w", [2**31, 2**31]),)), "test-gguf TENSORS_NBYTES_TOO_BIG: elements fit, bytes do not", "SizeOverflow", "overflows"),
    ("bytes-overflow-quantized", gguf(tensors=(tensor("w", [2**61, 2], kind=28),)), "the same with 8-byte elements", "SizeOverflow", "overflows"),
    ("bytes-pad-wrap", gguf(tensors=(tensor("w", [2**62 - 1, 1], kind=1), tensor("v", [4, 2], offset=0))), "test-gguf TENSORS_NBYTES_PAD_WRAP, 26318: size + 31 wraps", "OffsetOverflow", "overflows"),
    ("bytes-sum-overflow", gguf(tensors=(tensor("w", [2**60, 1]), tensor("v", [2**60, 1], offset=2**62), tensor("u", [2**60, 1], offset=2**63))), "test-gguf DATA_MEM_SIZE_OVERFLOW", "OffsetOverflow", "overflows"),
    ("type-withdrawn-4", gguf(tensors=(tensor("w", [4, 2], kind=4),)), "a hole in the type table: block size 0", "TensorType", "unknown ggml type 4"),
    ("type-999", gguf(tensors=(tensor("w", [4, 2], kind=999),)), "test-gguf TENSORS_BAD_TYPE: a type used as an array index", "TensorType", "unknown ggml type 999"),
    ("type-negative", gguf(tensors=(tensor("w", [4, 2], kind=2**32 - 1),)), "a read before a table", "TensorType", "unknown ggml type"),
    ("block-not-whole", gguf(tensors=(tensor("w", [33, 1], kind=2),)), "candle 3712-3714: rows that end inside a block", "PartialBlock", "whole number of Q4_0 blocks"),
    ("block-product-whole", gguf(tensors=(tensor("w", [16, 2], kind=2),)), "elements divide evenly but rows do not", "PartialBlock", "whole number of Q4_0 blocks"),
    ("offset-misaligned", gguf(tensors=(tensor("w", [4, 2], offset=4),), data=bytes(64)), "test-gguf TENSORS_BAD_OFFSET", "Misaligned", "multiple of the alignment 32"),
    ("offset-past-end", gguf(tensors=(tensor("w", [4, 2], offset=2**20),)), "CVE-2026-7482 (Ollama): memory beyond the file uploaded", "Truncated", "bytes are missing"),
    ("offset-wraps", gguf(tensors=(tensor("w", [4, 2], offset=2**64 - 32),)), "start + size wraps to 0", "OffsetOverflow", "overflows"),
    ("extent-past-end", gguf(tensors=(tensor("w", [4, 4]),)), "CVE-2026-7482 (Ollama): 32 bytes too many", "Truncated", "at least 32 bytes are missing"),
    ("overlap-equal", gguf(tensors=(W, tensor("v", [4, 2]))), "one tensor written through another", "Overlap", "overlaps"),
    ("overlap-partial", gguf(tensors=(tensor("w", [4, 4]), tensor("v", [4, 4], offset=32)), data=bytes(96)), "one tensor written through another", "Overlap", "overlaps"),
    ("split-count-huge", gguf(kvs=(ARCH, kv("split.count", U32, u32(2**32 - 1)))), "four thousand million files opened", "Limit", "split.count"),
    ("split-count-string", gguf(kvs=(ARCH, kv("split.count", STR, text("2")))), "a string read as a number", "WrongType", "split.count"),
    ("split-renamed", gguf(kvs=(ARCH, kv("split.count", U16, b"\2\0"), kv("split.no", U16, b"\0\0"))), "half a model loaded", "LoneShard", "shard 1 of 2"),
    # The rest of test-gguf, with its own numbers.
    ("version-4", gguf(version=4), "test-gguf HEADER_BAD_VERSION_FUTURE: the next version", "Version", "GGUF version 4"),
    ("align-13", gguf(kvs=(align_kv(U32, u32(13)),)), "test-gguf TENSORS_BAD_ALIGN: 13", "Alignment", "power of two"),
    ("align-i32", gguf(kvs=(align_kv(I32, u32(32)),)), "test-gguf KV_WRONG_TYPE_ALIGN: i32", "WrongType", "general.alignment"),
    ("key-duplicate-other-value", gguf(kvs=(kv("a", U8, b"\1"), kv("a", STR, text("x")))), "test-gguf KV_DUPLICATE_KEY: two types under one key", "DuplicateName", "appears twice"),
    ("dims-all-negative", gguf(tensors=(tensor("w", [MAX64, MAX64]),)), "test-gguf TENSORS_BAD_SHAPE: the product of two -1 is 1", "SizeOverflow", "overflows"),
    ("elements-4-int32-max", gguf(tensors=(tensor("w", [4 * (2**31 - 1)] * 2),)), "test-gguf TENSORS_NE_TOO_BIG: 4 x INT32_MAX squared", "SizeOverflow", "overflows"),
    ("bytes-pad-wrap-minus-16", gguf(tensors=(tensor("w", [4, 2**30 - 1, 2**30 + 1]),)), "test-gguf TENSORS_NBYTES_PAD_WRAP: 2^64 - 16 bytes, padded to 0", "SizeOverflow", "overflows"),
    ("bytes-sum-two-halves", gguf(tensors=(tensor("w", [2**63 - 64], kind=24), tensor("v", [2**63 - 64], kind=24, offset=2**63 - 64))), "test-gguf DATA_MEM_SIZE_OVERFLOW: two of 2^63 - 64 bytes", "OffsetOverflow", "overflows"),
    ("offset-max", gguf(tensors=(tensor("w", [4, 2], offset=MAX64),)), "test-gguf TENSORS_BAD_OFFSET: -1", "Misaligned", "multiple of the alignment 32"),
    ("offsets-packed", gguf(tensors=(tensor("w", [3]), tensor("v", [4, 2], offset=12)), data=bytes(64)), "test-gguf DATA_INCONSISTENT_ALIGN: offsets for an alignment of 1", "Misaligned", "multiple of the alignment 32"),
    # Entries of the CVE list, each with the field that it names.
    ("cve-2024-21802-dims", gguf(tensors=(tensor("w", [4, 2, 1, 1, 1, 2**40]),)), "CVE-2024-21802 (Talos 2024-1914, llama.cpp): info->ne written past its end", "Limit", "dimensions"),
    ("cve-2024-21825-array", gguf(kvs=(kv("a", ARR, array(STR, 2**60 + 1, text("x"))),)), "CVE-2024-21825 (Talos 2024-1912, llama.cpp): count x 16 wraps to 16", "Limit", "array length"),
    ("cve-2024-21836-tensors", gguf(n_tensors=2**60 + 1), "CVE-2024-21836 (Talos 2024-1915, llama.cpp): header.n_tensors x size wraps", "Limit", "the tensor count"),
    ("cve-2024-23496-string", gguf(kvs=(ARCH, kv("b", STR, text("x", MAX64)))), "CVE-2024-23496 (Talos 2024-1913, llama.cpp): gguf_fread_str reserves length + 1 = 0", "Limit", "string length"),
    ("cve-2024-23605-keys", gguf(n_kv=2**60 + 1), "CVE-2024-23605 (Talos 2024-1916, llama.cpp): header.n_kv x size wraps", "Limit", "the metadata count"),
    ("cve-2025-53630-sum", gguf(tensors=tuple(tensor(n, [2**60, 1], offset=i * 2**62) for i, n in enumerate("wvut")), data=bytes(64)), "CVE-2025-53630 (llama.cpp 14595): the sum of the sizes wraps to what the file has", "OffsetOverflow", "overflows"),
    ("cve-2025-66960-string", gguf(kvs=(kv("a", STR, text("x", 2**40)),)), "CVE-2025-66960 (Ollama): a string's length believed", "Limit", "string length"),
    ("cve-2026-7482-extent", gguf(tensors=(tensor("w", [2**20, 64], kind=1),)), "CVE-2026-7482 (Ollama): 128 MiB declared, 32 bytes there, the heap behind them quantized and pushed", "Truncated", "bytes are missing"),
    ("cut-in-magic", WHOLE[:3], "a cut download", "Truncated", "cut short"),
    ("cut-in-version", WHOLE[:6], "a cut download", "Truncated", "cut short"),
    ("cut-in-counts", WHOLE[:20], "a cut download", "Truncated", "cut short"),
    ("cut-in-key", WHOLE[:40], "a cut download", "Truncated", "cut short"),
    ("cut-in-value", WHOLE[:TABLE_START - 2], "a cut download", "Truncated", "cut short"),
    ("cut-in-table", WHOLE[:TABLE_START + 12], "a cut download", "Truncated", "cut short"),
    ("cut-in-padding", WHOLE[:DATA_START - 1], "test-gguf DATA_NOT_ENOUGH_DATA", "Truncated", "33 bytes are missing"),
    ("cut-in-data", WHOLE[:-1], "a download one byte short", "Truncated", "at least 1 bytes are missing"),
]

# These open (hob-files does not know what a key means); the wrong element type is refused where the key is read.
TYPED_CASES = [
    ("token-type-strings", gguf(kvs=(ARCH, kv("tokenizer.ggml.token_type", ARR, array(STR, 1, text("x"))))), "26690: element type not checked before a cast, out-of-bounds read", "WrongType", "tokenizer.ggml.token_type", "i32_array"),
    ("scores-u8", gguf(kvs=(ARCH, kv("tokenizer.ggml.scores", ARR, array(U8, 4, bytes(4))))), "26690: 4 bytes read as 4 floats", "WrongType", "tokenizer.ggml.scores", "f32_array"),
    ("tokens-not-strings", gguf(kvs=(ARCH, kv("tokenizer.ggml.tokens", ARR, array(U64, 1, u64(2**63))))), "26690: a number used as a pointer", "WrongType", "tokenizer.ggml.tokens", "str_array"),
    ("tokens-not-an-array", gguf(kvs=(ARCH, kv("tokenizer.ggml.tokens", STR, text("x")))), "a scalar read as an array", "WrongType", "tokenizer.ggml.tokens", "str_array"),
    ("architecture-u32", gguf(kvs=(kv("general.architecture", U32, u32(7)),)), "a number used as a string", "WrongType", "general.architecture", "str"),
    ("block-count-negative", gguf(kvs=(ARCH, kv("llama.block_count", I32, struct.pack("<i", -1)))), "4,294,967,295 layers", "WrongType", "llama.block_count", "u64"),
]

# ------------------------------------------------------------------------------------------------------ safetensors


def st(header, data=DATA, length=None):
    raw = header if isinstance(header, bytes) else header.encode()
    return u64(len(raw) if length is None else length) + raw + data


def entry(dtype='"F32"', shape="[2,4]", offsets="[0,32]"):
    return '{"dtype":%s,"shape":%s,"data_offsets":%s}' % (dtype, shape, offsets)


def one(**fields):
    return '{"w":%s}' % entry(**fields)


def two(a, b):
    return '{"w":%s,"v":%s}' % (a, b)


ST_WHOLE = st(one())

ST_CASES = [
    ("empty", b"", "a download that never started", "Truncated", "cut short"),
    ("cut-in-length", ST_WHOLE[:7], "a read past the end", "Truncated", "cut short"),
    ("cut-in-header", ST_WHOLE[:40], "a cut download", "Truncated", "cut short"),
    ("cut-in-data", ST_WHOLE[:-1], "a download one byte short", "Truncated", "at least 1 bytes are missing"),
    ("length-max", st(one(), length=MAX64), "8 + length wraps to 7", "Limit", "header length"),
    ("length-sign-bit", st(one(), length=2**63), "a length read as negative", "Limit", "header length"),
    ("length-over-cap", st(one(), length=100_000_001), "100 MB reserved for a short file", "Limit", "header length"),
    ("length-over-file", st(one(), length=50_000_000), "50 MB reserved for a short file", "Truncated", "cut short"),
    ("length-zero", st(one(), length=0), "an empty header", "Json", "must start with '{'"),
    ("length-short", st(one(), length=len(one()) - 1), "half a header", "Json", "is not valid"),
    ("not-json", st("{this is not json}"), "hand-written scanners", "Json", "is not valid"),
    ("json-array", st("[]", b""), "an array read as an object", "Json", "must start with '{'"),
    ("leading-space", st(" " + one()), "two kinds of file at once (polyglot)", "Json", "must start with '{'"),
    ("byte-order-mark", st(b"\xef\xbb\xbf" + one().encode()), "readers that disagree", "Json", "must start with '{'"),
    ("trailing-garbage", st(one() + "{}"), "two headers, readers that disagree", "Json", "trailing characters"),
    ("trailing-nul", st(one() + "\0\0"), "readers that stop at NUL", "Json", "trailing characters"),
    ("not-utf8", st(b'{"\xff":' + entry().encode() + b"}"), "bytes printed unchecked", "Json", "is not valid"),
    ("lone-surrogate", st('{"\\ud800":%s}' % entry()), "invalid text handed on", "Json", "is not valid"),
    ("name-duplicate", st('{"w":%s,"w":%s}' % (entry(), entry())), "parsers that keep the first or the last", "DuplicateName", "appears twice"),
    ("name-duplicate-escaped", st('{"w":%s,"\\u0077":%s}' % (entry(), entry(offsets="[32,64]")), bytes(64)), "the same name, spelled with an escape", "DuplicateName", "appears twice"),
    ("name-empty", st('{"":%s}' % entry()), "a tensor nobody can ask for", "EmptyName", "is empty"),
    ("name-nul", st('{"w\\u0000x":%s}' % entry()), "names cut at NUL compare equal", "BadName", "control characters"),
    ("name-too-long", st('{"%s":%s}' % ("w" * 300, entry())), "fixed name buffers", "Limit", "length of tensor"),
    ("field-duplicate", st('{"w":{"dtype":"F32","shape":[2,4],"shape":[1],"data_offsets":[0,32]}}'), "checked with one shape, read with another", "Json", "appears twice"),
    ("metadata-duplicate", st('{"__metadata__":{},"__metadata__":{},"w":%s}' % entry()), "parsers that keep the first or the last", "Json", "appears twice"),
    ("metadata-not-strings", st('{"__metadata__":{"a":{"b":1}},"w":%s}' % entry()), "nested data smuggled past a flat schema", "Json", "expected a string"),
    ("overlap-equal", st(two(entry(), entry())), "one tensor written through another; n tensors from one extent (bomb)", "Overlap", "overlaps"),
    ("overlap-partial", st(two(entry(), entry(offsets="[16,48]")), bytes(48)), "one tensor written through another", "Overlap", "overlaps"),
    ("gap", st(two(entry(), entry(offsets="[40,72]")), bytes(72)), "hidden data between tensors", "Gap", "no gaps"),
    ("gap-at-start", st(one(offsets="[8,40]"), bytes(40)), "hidden data before the first tensor", "Gap", "no gaps"),
    ("trailing-bytes", st(one(), bytes(33)), "a second file appended (polyglot)", "TrailingBytes", "follow the last tensor"),
    ("no-tensors-but-data", st("{}"), "a file that is all hidden data", "TrailingBytes", "follow the last tensor"),
    ("out-of-file", st(one(shape="[2,400]", offsets="[0,3200]")), "CVE-2026-7482's class: memory beyond the file", "Truncated", "bytes are missing"),
    ("offsets-max", st(one(offsets="[18446744073709551583,18446744073709551615]")), "start + data start wraps", "Gap", "no gaps"),
    ("offsets-negative", st(one(offsets="[-32,0]")), "a read before the data", "Json", "tensor"),
    ("offsets-backwards", st(one(offsets="[32,0]")), "end - start wraps", "BackwardOffsets", "run backwards"),
    ("offsets-float", st(one(offsets="[0.0,32.0]")), "numbers rounded past 2^53", "Json", "expected u64"),
    ("offsets-over-u64", st(one(offsets="[0,18446744073709551648]")), "wraps to 32", "Json", "is not valid"),
    ("offsets-one", st(one(offsets="[0]")), "a missing end", "Json", "is not valid"),
    ("offsets-three", st(one(offsets="[0,32,64]")), "an ignored third number", "Json", "is not valid"),
    ("size-mismatch", st(one(shape="[2,2]")), "shape and extent disagree: out-of-bounds rows", "ExtentSize", "needs 16 bytes"),
    ("size-too-small", st(one(shape="[2,5]")), "shape and extent disagree: out-of-bounds rows", "ExtentSize", "needs 40 bytes"),
    ("dtype-unknown", st(one(dtype='"F31"')), "a default taken for an unknown type", "Json", "unknown dtype"),
    ("dtype-lower-case", st(one(dtype='"f32"')), "readers that disagree", "Json", "unknown dtype"),
    ("dtype-number", st(one(dtype="0")), "a number read as a string", "Json", "expected a dtype"),
    ("dtype-missing", st('{"w":{"shape":[2,4],"data_offsets":[0,32]}}'), "a null dereference", "Json", "missing field `dtype`"),
    ("shape-missing", st('{"w":{"dtype":"F32","data_offsets":[0,32]}}'), "a null dereference", "Json", "missing field `shape`"),
    ("offsets-missing", st('{"w":{"dtype":"F32","shape":[2,4]}}'), "a null dereference", "Json", "missing field `data_offsets`"),
    ("entry-null", st('{"w":null}', b""), "a null dereference", "Json", "expected an object"),
    ("shape-overflow", st(one(shape="[4294967296,4294967296]")), "the product wraps to 0", "SizeOverflow", "overflows"),
    ("shape-wrap-to-8", st(one(shape="[4611686018427387905,4,2]")), "the wrapped product fits the file", "SizeOverflow", "overflows"),
    ("shape-zero", st(one(shape="[2,0]", offsets="[0,0]"), b""), "divide by zero later", "ZeroDimension", "is zero"),
    ("shape-negative", st(one(shape="[-2,-4]")), "the product of two negatives fits", "Json", "is not valid"),
    ("shape-9-dims", st(one(shape="[1,1,1,1,1,1,1,2,4]")), "a write past a fixed array", "Json", "more than 8 dimensions"),
    ("shape-string", st(one(shape='"[2,4]"')), "a string read as an array", "Json", "is not valid"),
    ("f4-odd", st(one(dtype='"F4"', shape="[63]")), "half a byte at the end", "ExtentSize", "needs 32 bytes"),
    ("deep-header", st('{"w":' + "[" * 1500 + "]" * 1500 + "}"), "stack overflow", "Limit", "nesting"),
    ("deep-objects", st('{"w":' + '{"a":' * 500 + "1" + "}" * 501), "stack overflow", "Limit", "nesting"),
    ("deep-unclosed", st("{" + '"w":[' + "[" * 2000), "stack overflow before the syntax error", "Limit", "nesting"),
]

# ---------------------------------------------------------------------------------------------------------- folders

CONFIG = b'{"model_type":"llama"}'
INDEX = "model.safetensors.index.json"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ST_V = st(one().replace('"w"', '"v"'))


def index(weight_map):
    return json.dumps({"metadata": {"total_size": 64}, "weight_map": weight_map}).encode()


def hf(**files):
    """A folder with config.json; keyword names stand for the usual file names."""
    names = {"index": INDEX, "a": A, "b": B, "model": "model.safetensors", "config": "config.json"}
    return {"config.json": CONFIG} | {names.get(k, k): v for k, v in files.items()}


def traversal(name):
    return hf(index=index({"w": A, "v": name}), a=ST_WHOLE)


def split_gguf(number, count, name="w", total=2):
    keys = (kv("split.no", U16, struct.pack("<H", number)), kv("split.count", U16, struct.pack("<H", count)))
    keys += (kv("split.tensors.count", I32, struct.pack("<i", total)),)
    return gguf(kvs=(ARCH,) + keys, tensors=(tensor(name, [4, 2]),))


S1, S2 = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"

FOLDER_CASES = [
    # name, files, what to open ("" is the folder), broke, rule, phrase
    ("index-missing-shard", hf(index=index({"w": A, "v": B}), a=ST_WHOLE), "", "half a model loaded", "ShardMissing", "1 of 2 files are missing"),
    ("index-parent", traversal("../../secret.safetensors"), "", "CVE-2024-37032's class (Probllama): a name used as a path", "ShardName", "not a plain file name"),
    ("cve-2024-37032-digest", traversal("../../../../root/.ssh/id.safetensors"), "", "CVE-2024-37032 (Ollama, Probllama): a name from the net used as a path", "ShardName", "not a plain file name"),
    ("index-absolute", traversal("/etc/secret.safetensors"), "", "the same, absolute", "ShardName", "not a plain file name"),
    ("index-subfolder", traversal("sub/model.safetensors"), "", "the same, downwards", "ShardName", "not a plain file name"),
    ("index-backslash", traversal("..\\secret.safetensors"), "", "the same on Windows", "ShardName", "not a plain file name"),
    ("index-drive", traversal("C:secret.safetensors"), "", "the same on Windows", "ShardName", "not a plain file name"),
    ("index-nul", traversal("a\0.safetensors"), "", "a name cut at NUL", "ShardName", "not a plain file name"),
    ("index-other-kind", traversal("pytorch_model.bin"), "", "a pickle loaded in place of safetensors", "ShardName", "not a plain file name"),
    ("index-wrong-shard", hf(index=index({"w": B, "v": A}), a=ST_WHOLE, b=ST_V), "", "tensors read from the wrong file", "ShardTensor", "does not hold it"),
    ("index-unknown-tensor", hf(index=index({"w": A, "v": B, "x": B}), a=ST_WHOLE, b=ST_V), "", "a null dereference", "ShardTensor", "does not hold it"),
    ("index-duplicate-tensor", hf(index=b'{"weight_map":{"w":"%s","w":"%s"}}' % (A.encode(), B.encode()), a=ST_WHOLE, b=ST_V), "", "parsers that keep the first or the last", "DuplicateName", "appears twice"),
    ("index-no-map", hf(index=b'{"metadata":{}}', a=ST_WHOLE), "", "a null dereference", "Json", "weight_map"),
    ("index-empty-map", hf(index=index({}), a=ST_WHOLE), "", "a model of nothing", "Json", "weight_map is missing or empty"),
    ("index-map-numbers", hf(index=b'{"weight_map":{"w":1}}', a=ST_WHOLE), "", "a number used as a string", "Json", "is not valid"),
    ("index-deep", hf(index=b'{"x":' + b"[" * 1800 + b"]" * 1800 + b"}"), "", "stack overflow", "Limit", "nesting"),
    ("shards-same-tensor", hf(index=index({"w": A, "v": B}), a=ST_WHOLE, b=st(two(entry(), entry(offsets="[32,64]")), bytes(64))), "", "which of two tensors is read depends on the order", "DuplicateName", "appears twice"),
    ("shard-alone", {A: ST_WHOLE}, A, "half a model loaded", "LoneShard", "shard 1 of 2"),
    ("shard-damaged", hf(index=index({"w": A, "v": B}), a=ST_WHOLE, b=ST_V[:-4]), "", "a cut download among whole ones", "Truncated", B),
    ("config-missing", {"model.safetensors": ST_WHOLE}, "", "a default architecture assumed", "NoConfig", "no config.json"),
    ("config-not-json", hf(model=ST_WHOLE, config=b"model_type: llama"), "", "a crash far from the cause", "Json", "config.json"),
    ("config-empty", hf(model=ST_WHOLE, config=b""), "", "a cut download", "Json", "config.json"),
    ("config-deep", hf(model=ST_WHOLE, config=b'{"a":' * 600 + b"1" + b"}" * 600), "", "stack overflow", "Limit", "nesting"),
    ("weights-missing", hf(), "", "a model of nothing", "NoWeights", "no weights"),
    ("weights-pickled", hf(**{"pytorch_model.bin": b"PK\3\4"}), "", "pickles run code when loaded", "NoWeights", "run code"),
    ("weights-ambiguous", hf(**{"x.safetensors": ST_WHOLE, "y.safetensors": ST_V}), "", "one of two models taken by chance", "NoWeights", "without an index"),
    ("weights-lfs-pointer", hf(model=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "", "a clone without git-lfs", "NotAModel", "Git LFS pointer"),
    ("weights-html-page", hf(model=b"<html>Please log in</html>"), "", "an error page saved as a model", "NotAModel", "web page"),
    ("split-missing", {S1: split_gguf(0, 2)}, S1, "half a model loaded", "ShardMissing", "1 of 2 files are missing"),
    ("split-same-tensor", {S1: split_gguf(0, 2), S2: split_gguf(1, 2)}, S1, "which of two tensors is read depends on the order", "DuplicateName", "appears twice"),
    ("split-wrong-number", {S1: split_gguf(0, 2), S2: split_gguf(0, 2, "v")}, S1, "a shard of another place", "ShardMismatch", "split.no"),
    ("split-wrong-count", {S1: split_gguf(0, 2), S2: split_gguf(1, 3, "v")}, S1, "a shard of another model", "ShardMismatch", "split.count"),
    ("split-wrong-total", {S1: split_gguf(0, 2, total=9), S2: split_gguf(1, 2, "v")}, S1, "tensors missing from a shard", "ShardMismatch", "expected 9, found 2"),
    ("split-damaged", {S1: split_gguf(0, 2), S2: split_gguf(1, 2, "v")[:-8]}, S1, "a cut download among whole ones", "Truncated", S2),
]

# ---------------------------------------------------------------------------------------------------------- control

EVERY_TYPE = (
    ARCH,
    kv("u8", U8, b"\1"), kv("i8", I8, b"\xff"), kv("u16", U16, b"\1\0"), kv("i16", I16, b"\xff\xff"),
    kv("u32", U32, u32(7)), kv("i32", I32, u32(2**32 - 1)), kv("u64", U64, u64(MAX64)), kv("i64", I64, u64(MAX64)),
    kv("f32", F32, struct.pack("<f", 0.5)), kv("f64", F64, struct.pack("<d", -0.5)), kv("bool", BOOL, b"\1"),
    kv("strings", ARR, array(STR, 3, text("a") + text("") + text("\u00e9"))),
    kv("floats", ARR, array(F32, 2, struct.pack("<ff", 1, 2))), kv("bools", ARR, array(BOOL, 2, b"\0\1")),
    kv("matrix", ARR, array(ARR, 2, array(U8, 2, b"\1\2") + array(U8, 0))),
    align_kv(U32, u32(64)),
)  # fmt: skip

CONTROL = {
    "tiny.gguf": WHOLE,
    "tiny-v2.gguf": gguf(version=2),
    "types.gguf": gguf(EVERY_TYPE, (W, tensor("q", [32, 2], kind=2, offset=64), tensor("s", [], offset=128)), bytes(132), align=64),
    "no-tensors.gguf": gguf(tensors=(), data=None),
    "tiny.safetensors": ST_WHOLE,
    "dtypes.safetensors": st('{"__metadata__":{"format":"pt"},"w":%s,"b":%s,"s":%s}  ' % (entry(), entry('"BF16"', "[3]", "[32,38]"), entry('"U8"', "[]", "[38,39]")), bytes(39)),
    "hf/config.json": CONFIG,
    "hf/" + INDEX: index({"w": A, "v": B}),
    "hf/" + A: ST_WHOLE,
    "hf/" + B: ST_V,
    "split/" + S1: split_gguf(0, 2),
    "split/" + S2: split_gguf(1, 2, "v"),
}

# ---------------------------------------------------------------------------------------------------------- writing


def build():
    """All files of the folder but README.md, and the rows of its table."""
    files, expected, rows = {}, [], []

    def add(path, broke, rule, phrase, access="open"):
        expected.append("\t".join((path, access, rule, phrase)))
        rows.append(f"| `{path}` | {broke} | `{rule}` |")

    for name, data, broke, rule, phrase in GGUF_CASES:
        files[f"gguf/{name}.gguf"] = data
        add(f"gguf/{name}.gguf", broke, rule, phrase)
    for name, data, broke, rule, phrase, access in TYPED_CASES:
        files[f"gguf/{name}.gguf"] = data
        add(f"gguf/{name}.gguf", broke, rule, phrase, access)
    for name, data, broke, rule, phrase in ST_CASES:
        files[f"safetensors/{name}.safetensors"] = data
        add(f"safetensors/{name}.safetensors", broke, rule, phrase)
    for name, members, opened, broke, rule, phrase in FOLDER_CASES:
        for member, data in members.items():
            files[f"folders/{name}/{member}"] = data
        add(f"folders/{name}/{opened}".rstrip("/"), broke, rule, phrase)
    for path, data in CONTROL.items():
        files[f"control/{path}"] = data

    assert len({line.split("\t")[0] for line in expected}) == len(expected), "two cases of one name"
    for path, data in files.items():
        assert len(data) < MAX_FILE_BYTES, f"{path} has {len(data)} bytes"
    total = sum(map(len, files.values()))
    assert total < MAX_FOLDER_BYTES, f"{total} bytes in all"
    files["expected.tsv"] = ("# file, access, FileError variant, phrase of the message; written by make.py\n" + "\n".join(expected) + "\n").encode()
    return files, rows


def main():
    files, rows = build()
    readme = HERE / "README.md"
    head = readme.read_text().split("<!-- table -->")[0]
    table = "| file | what it once broke | rule that refuses it |\n|---|---|---|\n" + "\n".join(rows)
    files["README.md"] = f"{head}<!-- table -->\n{table}\n".encode()
    folders = [HERE / name for name in ("gguf", "safetensors", "folders", "control")]
    old = {str(p.relative_to(HERE)) for folder in folders for p in folder.rglob("*") if p.is_file()}
    stale = sorted(old - set(files))
    changed = [p for p, data in files.items() if not (HERE / p).is_file() or (HERE / p).read_bytes() != data]
    if "--check" in sys.argv[1:]:
        for path in stale + changed:
            print(f"attacks/{path} is not what make.py writes; run python3 attacks/make.py")
        sys.exit(bool(stale or changed))
    for path in stale:
        (HERE / path).unlink()
    for path in changed:
        (HERE / path).parent.mkdir(parents=True, exist_ok=True)
        (HERE / path).write_bytes(files[path])
    print(f"{len(rows)} attacks, {len(files)} files, {sum(map(len, files.values()))} bytes; {len(changed)} written, {len(stale)} removed")


if __name__ == "__main__":
    main()
