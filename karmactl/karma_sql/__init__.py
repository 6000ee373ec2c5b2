"""SQL over Karma's snapshots, logs and exports, with DuckDB and without a server. No command line in here.

- `sources` are where data come from: data directories, `.tree` files, Parquet, log files, remote nodes;
- `remote` fetches what a node has into a mirror in the cache;
- `tables` says which tables and macros there are, `loading` fills them when a statement first names them;
- `cache` keeps decoded snapshots as DuckDB files, pruned by size;
- `engine` is DuckDB's module, loaded late and alone;
- `confined` is a bare connection that reaches a few files;
- `session` is a connection in which SQL reaches the sources and nothing else;
- `mistakes` says where a statement is wrong; `plots` draws results in a terminal.

What it reads is only ever read. Whoever needs no DuckDB does not load it by importing this package.
"""
