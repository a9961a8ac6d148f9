"""Damage to the bytes of a valid file, as hypothesis strategies."""

from __future__ import annotations

import re

from hypothesis import strategies as st

# What a number, a word or a bracket in a text is replaced by.
WORDS = (
    b"-1", b"0", b"1", b"-5", b"0.5", b"3", b"65535", b"100000", b"4294967296", b"9" * 30, b"1e999",
    b"-1e308", b"NaN", b"Infinity", b"null", b"true", b"[]", b"{}", b'""', b'"x"', b"[1]", b"{",
    b"}", b"", b"\n", b"\r\n", b"\0", b"\xff\xfe", b"\\ud800", b"A" * 300, b"A" * 70_000,
    b"%s%n%x", b"LIST", b"LOCAL", b"../../../etc/passwd", b"/etc/passwd", b"/dev/zero",
    b"[" * 3000, b'{"a":' * 3000, b"F8_E4M3", b"BF16", b"complex",
)  # fmt: skip
# What a field of a binary header is replaced by: the extremes of integers and floats.
FIELDS = (
    *(value * count for count in (1, 2, 4, 8) for value in (b"\0", b"\xff", b"\x7f", b"\x80")),
    *(b"\x01", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\x7f", b"\xfb\xff", b"\0\0\0\x80"),
)
TOKEN = re.compile(rb'[A-Za-z0-9_.+-]+|[\[\]{}":,=]')
# Bytes at the start of a file in which most of the damage is done: the header.
HEAD = 2048


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """The file with one to three damages, or garbage in its place."""
    one = st.one_of(
        st.builds(_cut, _places(data)),
        st.builds(_flip, _places(data), st.integers(0, 7)),
        st.builds(_put, _places(data), st.sampled_from(FIELDS)),
        st.builds(_put, _places(data), st.binary(min_size=1, max_size=8)),
        st.builds(_insert, _places(data), st.sampled_from(WORDS)),
        st.builds(_word, st.integers(0, 400), st.sampled_from(WORDS)),
        st.builds(_word, st.integers(0, 400), st.sampled_from(WORDS)),
        st.builds(_repeat, _places(data), st.integers(1, 64), st.integers(2, 50)),
    )
    damaged = st.lists(one, min_size=1, max_size=3).map(lambda steps: _all(steps, data))
    return st.one_of(*[damaged] * 12, st.binary(max_size=600))


def _places(data: bytes) -> st.SearchStrategy[int]:
    last = max(len(data) - 1, 0)
    return st.one_of(st.integers(0, min(HEAD, last)), st.integers(0, last))


def _all(steps, data):
    for step in steps:
        data = step(data)
    return data


def _cut(at):
    return lambda data: data[:at]


def _flip(at, bit):
    def do(data):
        if at >= len(data):
            return data
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    return do


def _put(at, value):
    return lambda data: data[:at] + value + data[at + len(value) :]


def _insert(at, value):
    return lambda data: data[:at] + value + data[at:]


def _repeat(at, length, times):
    return lambda data: data[:at] + data[at : at + length] * times + data[at + length :]


def _word(number, value):
    def do(data):
        words = list(TOKEN.finditer(data, 0, 4 * HEAD))
        if not words:
            return data
        word = words[number % len(words)]
        return data[: word.start()] + value + data[word.end() :]

    return do
