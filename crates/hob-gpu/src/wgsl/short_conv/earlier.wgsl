// What tap j of a sequence's next row finds before it: a held row that counts, a column of the state, or nothing before
// position 0. An item begins with position, slot, held rows that count.
fn earlier(item: u32, j: u32, c: u32) -> f32 {
    let before = TAPS - 1u - j;
    if (before > arguments[item]) {
        return 0.0;
    }
    let slot = arguments[item + 1u];
    let accepted = arguments[item + 2u];
    //#if RECORDS
    if (before <= accepted) {
        return records[(slot * HELD + accepted - before) * sizes.dim + c];
    }
    //#endif
    return state[(slot * (TAPS - 1u) + j + accepted) * sizes.dim + c];
}
