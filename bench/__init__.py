"""rtrain beside hand-written peers: `make bench` prints ratios, never absolute claims."""
