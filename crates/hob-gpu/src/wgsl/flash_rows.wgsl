// What every form of attention of many rows shares: its bindings, which rows a workgroup takes, and where blocks lie.
// Where the sequences (`Tables`) and the tiles, pairs of sequence and tile, start in `arguments`.
struct Sizes { tables: u32, tiles: u32, window: u32, factor: f32, cap: f32 }
var<immediate> sizes: Sizes;
@group(0) @binding(0) var<storage, read_write> out: array<$QUAD$>;
@group(0) @binding(1) var<storage, read> q: array<$QUAD$>;
@group(0) @binding(2) var<storage, read> arguments: array<u32>;
@group(0) @binding(3) var<storage, read> pages: array<vec4<u32>>;
//#if FIRST
@group(0) @binding(4) var<storage, read> first_pages: array<vec4<u32>>;
//#endif
//#if SINKS
@group(0) @binding($SINKS_AT$) var<storage, read> sinks: array<f32>;
//#endif
//#if HALF
@group(0) @binding($HALF_AT$) var<storage, read_write> half_out: array<$HALF_QUAD$>;
//#endif

const DIM = $DIM$u;
const GROUP = $GROUP$u;
const ROWS = $ROWS$u;
const LANES = $LANES$u;

// Rows of a sequence are (token, head) pairs of one KV head, heads fastest; a tile is ROWS of them.
struct Tile {
    // First batch row of the sequence, and its position.
    row: u32,
    position: u32,
    // First row of the tile, and one past its last row that exists.
    start: u32,
    end: u32,
    // Index in `arguments` of what would be page 0.
    table: u32,
    // Blocks of 64 positions that some row sees.
    from_block: u32,
    to_block: u32,
    kv_head: u32,
    kv_heads: u32,
}

fn first_seen(position: u32) -> u32 {
    return select(0u, position + 1u - sizes.window, sizes.window > 0u && position >= sizes.window);
}

fn tile_of(group: vec3<u32>, kv_heads: u32) -> Tile {
    var t: Tile;
    let at = sizes.tiles + 2u * group.x;
    let seq = sizes.tables + 4u * arguments[at];
    t.row = arguments[seq];
    t.position = arguments[seq + 2u];
    t.start = arguments[at + 1u] * ROWS;
    t.end = min(t.start + ROWS, arguments[seq + 1u] * GROUP);
    t.table = sizes.tables + arguments[seq + 3u];
    t.from_block = first_seen(t.position + t.start / GROUP) / 64u;
    t.to_block = (t.position + (t.end - 1u) / GROUP) / 64u + 1u;
    t.kv_head = group.y;
    t.kv_heads = kv_heads;
    return t;
}

// Where a row of the tile lies in q and out, in floats; `row` is one that exists.
fn row_at(t: Tile, row: u32) -> u32 {
    let r = t.start + row;
    return (((t.row + r / GROUP) * t.kv_heads + t.kv_head) * GROUP + r % GROUP) * DIM;
}

// Where a block of the tile's KV head starts, in pieces of 16 bytes.
fn block_at(t: Tile, block: u32) -> u32 {
    let page = arguments[t.table + block / 4u];
    //#if FIRST
    if (block < 4u) {
        let within = select(0u, $WIDE_BLOCK$u + (block - 1u) * $BLOCK$u, block > 0u);
        return page * $FIRST_PAGE$u + t.kv_head * $FIRST_HEAD$u + within;
    }
    //#endif
    return page * $PAGE$u + t.kv_head * $HEAD$u + (block % 4u) * $BLOCK$u;
}

//#if CAPPED
//#include tanh
//#endif

// A score in powers of 2.
fn score(dot: f32) -> f32 {
    //#if CAPPED
    return tanh_of(dot * sizes.factor) * sizes.cap;
    //#else
    return dot * sizes.factor;
    //#endif
}
