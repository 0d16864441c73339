"""Comparing what nodes say."""

from __future__ import annotations

import re


def rounded(replies: bytes) -> bytes:
    """Replies without what differs by the second in which they were made; ttls are rounded to 50 s."""
    to_50 = lambda match: match[1] + b"%d" % (round(int(match[2]) / 50) * 50)  # noqa: E731
    replies = re.sub(rb"( t| exp=-?)([0-9]{2,9})(?=[ \r])", to_50, replies)
    # A ttl of an item that is expired already shows as unsigned and depends on when the server was started.
    replies = re.sub(rb" t42949[0-9]{5}(?=[ \r])", b" t(negative)", replies)
    return re.sub(rb"( l| la=)[0-9](?=[ \r])", rb"\g<1>0", replies)
