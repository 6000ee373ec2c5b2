"""Every fixed bound in one place: the unit last in the name, the reason beside it.

Bounds an operator may move are options (see `config`); what stands here is the protocol's or our choice.
"""

from typing import Final

# -- Numbers and names ----------------------------------------------------------------------------------

U64_MAX: Final = 2**64 - 1
"""Keys, values, buckets and totals. The original stops at 2^63-1; ids of users are often unsigned."""

MAX_LSN: Final = 2**62
"""LSNs of another node: at ten million writes a second they last for 14,000 years. Without a bound a source
could leave a follower no number to write under."""

MAX_RANGE_DAYS: Final = 366
"""How far apart the two days of a range may be: one leap year, as in the original."""

MAX_BATCH_ITEMS: Final = 10_000
"""`keys` or `items` of one request, as in the original: bounds how long one request holds the loop."""

MAX_SERIES_NAME_BYTES: Final = 200
"""UTF-8. `<seconds>_<name>.tree.meta.json` must stay under the 255 bytes file systems allow a name."""

MAX_QUOTED_CHARACTERS: Final = 200
"""What an error quotes of a word that a request brought: no reply grows with the request that it refuses."""

MAX_IDEMPOTENCY_KEY_BYTES: Final = 256
"""UTF-8; the protocol's bound."""

MAX_FINGERPRINT_BYTES: Final = 512
"""UTF-8; the protocol's bound. Ours has 64 hex digits, so anything longer can only be a mismatch."""

MAX_STREAM_ID_BYTES: Final = 256
"""UTF-8. Our choice, the same as an idempotency key: committed streams are remembered the same way."""

MAX_SOURCE_BYTES: Final = 256
"""UTF-8, `source` of recovery.checkpoint. Our choice: each source stays in memory and in one file."""

MAX_CHECKPOINTS: Final = 1_000
"""Sources with a recovery checkpoint. Each one rewrites the whole file, and all should fit one reply."""

BRANCHES: Final = 9
"""Maps in a snapshot file (key mod 9). Only the file format and `tree.info` still know of them."""

# -- Pages and reads ------------------------------------------------------------------------------------

PAGE_DEFAULT_LIMIT: Final = 1_000
PAGE_MAX_LIMIT: Final = 10_000
PAGE_MAX_CURSOR_BYTES: Final = 1_024
"""A file name has at most 255 bytes, the name of a series that Karma 1.0 made about as many."""
PAGE_RESERVE_BYTES: Final = 8_192
"""What a reply holds beside the rows of its page: the envelope, the cursor, what snapshot.info says else."""
TREE_KEYS_DEFAULT_LIMIT: Final = 100
TREE_KEYS_MAX_LIMIT: Final = 10_000
"""A page of 10,000 keys is 570 kB at its longest: it fits the default max-response-bytes."""

CHECKPOINTS_MAX_LIMIT: Final = MAX_CHECKPOINTS
"""A page of recovery.status, which ends earlier where the reply would get too long."""

CLIENTS_DEFAULT_LIMIT: Final = 1_000
CLIENTS_MAX_LIMIT: Final = 3_000
"""Connections in one reply of system.clients, each some 250 bytes: it must fit when it is needed most."""

STATUS_ITEMS: Final = 8
"""How many snapshots and checkpoints replication.status names, the newest; counts say how many there are.
Every tool depends on that reply, so its size must not depend on how much data there is."""

TREE_TOP_DEFAULT_LIMIT: Final = 50
TREE_TOP_MAX_LIMIT: Final = 1_000
"""The heap that finds the top grows to this; a longer ranking is an export, not a page."""

SNAPSHOT_CHUNK_DEFAULT_BYTES: Final = 262_144
SNAPSHOT_CHUNK_MAX_BYTES: Final = 524_288
"""Bytes of a file in one reply: the largest is 699 kB as base64 and fits the default max-response-bytes."""

REPLICATION_ENTRIES_DEFAULT_LIMIT: Final = 1_000
REPLICATION_ENTRIES_MAX_LIMIT: Final = 10_000
"""Log entries in one reply; the page's byte budget usually ends it first."""

REPLICATION_MAX_WAIT_MS: Final = 30_000
"""The longest a source holds a reply back: below the minute after which middleboxes cut silent peers."""

MAX_PAUSE_MS: Final = 3_600_000
"""The longest replication.pause: it guards against a dead operator, so it must end within the hour."""

MAX_REASON_BYTES: Final = 512
"""UTF-8, `reason` of replication.fence: it is repeated in every refusal."""

MAX_RUN_BYTES: Final = 64
"""UTF-8, `run` of the operations that change roles: ours are a playbook's name, a time and 4 hex digits."""

MAX_HOLDER_BYTES: Final = 256
"""UTF-8, `holder` of a lease and `text` of a parked run: both are repeated in refusals and status."""

MAX_LEASE_MS: Final = 600_000
"""The longest replication.lease: a dead operator must not hold a cluster for longer."""

MAX_PARKED_RUNS: Final = 16
"""Parked runs that a node remembers; they travel in every replication.status."""

MAX_MAINTENANCE_MS: Final = 604_800_000
"""The longest replication.maintenance: a week. A forgotten one must not silence alerts forever."""

MAX_NODE_ID_BYTES: Final = 64
"""UTF-8, `node_id` and `cluster_id`; ours have 16 hex digits."""

MAX_HOST_BYTES: Final = 255
"""What a name of the DNS may have."""

MAX_PATH_NODES: Final = 64
"""Nodes from the master to a follower. Each hop adds its delay; more than that is a loop or a forgery."""

MAX_RECEIVED_TEXT_BYTES: Final = 4_096
"""UTF-8, a name in what a source sends. Requests allow less; Karma 1.0 took any that fitted a request."""

MAX_METADATA_BYTES: Final = 16_384
"""Metadata of one snapshot file, as a source sends them: a name and a handful of numbers."""

MAX_PEER_MESSAGE_CHARACTERS: Final = 300
"""What is repeated of another node's error message, in this node's status and log."""

MAX_UNIX_SECONDS: Final = 2**53
"""Times in what a source sends, as JSON numbers hold them exactly."""

BOOTSTRAP_RESERVE_BYTES: Final = 64 << 20
BOOTSTRAP_RESERVE_SHARE: Final = 20
"""What a bootstrap leaves free on the disk: so many bytes, or 1/20 of a smaller disk."""

FILE_OVERHEAD_BYTES: Final = 4_096
"""What a file takes on the disk beyond its bytes, so that a million empty ones count, too."""

MAX_TOKEN_BYTES: Final = 1_024
"""UTF-8, the token that replication.follow brings for the source."""

MAX_KNOWN_REPLICAS: Final = 64
"""Followers that log is kept for and metrics name. Peers can invent ids: those that ask keep their place."""

MAX_FORMER_SOURCES: Final = 8
"""Masters this node took over from that are told of its epoch; older ones were met long ago."""

PRUNE_MAX_LIMIT: Final = 100_000
"""Records one idempotency.prune may drop: a larger clean-up takes several requests."""

RESPONSE_ENVELOPE_BYTES: Final = 2_048
"""Kept free of max-response-bytes for the fields around a page's items: a page's budget is the rest."""

READ_SLICE_KEYS: Final = 256
"""Keys a large read visits before it yields: at a year of days each, a few milliseconds."""

PAGE_SLICE_KEYS: Final = 1_000
"""Keys that a page takes from a view before it yields."""

LIST_SLICE_ITEMS: Final = 1_024
"""Keys or items of a list that a read answers before it yields."""

INLINE_KEYS: Final = 1_024
"""Keys of a series up to which a deletion is applied at once and a read needs no view: a few milliseconds."""

CHORE_KEYS: Final = 256
"""Keys that one step of a deletion's application visits."""

MAX_PENDING_DELETIONS: Final = 64
"""Deletions that one series may have pending: each read of a key looks through them."""

REBUILT_KEYS: Final = 65_536
"""Keys whose dict is made anew, to free its memory, when most of the others were removed."""

LARGE_REQUEST_BYTES: Final = 8_192
"""Request lines from this size up, and the lines read with them, are executed in turns (see `service.turns`):
to parse two megabytes takes tens of milliseconds, whatever they ask for."""

TURN_REPLY_BYTES: Final = 65_536
LARGE_REPLY_BYTES: Final = 1_024
"""What one client is answered in one turn of the loop, counting large replies only. A read of the socket may
hold hundreds of requests for a megabyte each: the memory and the others' time are not that client's."""
