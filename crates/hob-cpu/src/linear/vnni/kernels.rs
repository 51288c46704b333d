//! The kernels, written once for a register width: a macro, because a function can only be compiled for the instruction
//! set its attribute names, and intrinsics of two widths share no trait.

macro_rules! kernels {
    ($feature:literal, load: |$lp:ident| $load:expr, store: |$sp:ident, $sv:ident| $store:expr,
     load_f: |$lfp:ident| $load_f:expr, store_f: |$sfp:ident, $sfv:ident| $store_f:expr,
     f16s: |$hp:ident| $f16s:expr, unsigned: |$up:ident| $unsigned:expr, signed: |$ip:ident| $signed:expr,
     pairs: |$pp:ident| $pairs:expr, table: |$tp:ident| $table:expr) => {
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn load($lp: *const u8) -> I {
            // SAFETY: the caller vouches for one register of bytes.
            unsafe { $load }
        }

        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn store($sp: *mut u8, $sv: I) {
            // SAFETY: as above.
            unsafe { $store }
        }

        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn load_f($lfp: *const f32) -> F {
            // SAFETY: the caller vouches for one register of floats.
            unsafe { $load_f }
        }

        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn store_f($sfp: *mut f32, $sfv: F) {
            // SAFETY: as above.
            unsafe { $store_f }
        }

        /// Half-precision values, one per row.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn f16s($hp: *const u8) -> F {
            // SAFETY: the caller vouches for 2 bytes per row.
            unsafe { $f16s }
        }

        /// Unsigned bytes, one per row.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn unsigned($up: *const u8) -> I {
            // SAFETY: the caller vouches for a byte per row.
            unsafe { $unsigned }
        }

        /// Signed bytes, one per row.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn signed($ip: *const u8) -> I {
            // SAFETY: the caller vouches for a byte per row.
            unsafe { $signed }
        }

        /// Two signed bytes per row, as the 16-bit halves of its dword.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn pairs($pp: *const u8) -> I {
            // SAFETY: the caller vouches for 2 bytes per row.
            unsafe { $pairs }
        }

        /// A table of 16 bytes for every 16 bytes of a register.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn table(t: &[u8; 16]) -> I {
            let $tp = t.as_ptr();
            // SAFETY: 16 bytes.
            unsafe { $table }
        }

        /// A dword of every row at `p`, in the register `part` of a chunk of 64 bytes.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn chunk(p: *const u8, index: usize, part: usize) -> I {
            // SAFETY: the caller vouches for the chunk.
            unsafe { load(p.add(64 * index + 4 * LANES * part)) }
        }

        /// The codes of one block, unsigned: dword `t` holds columns 4t..4t+4 of every row.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn codes<const FMT: u8>(p: *const u8, part: usize) -> [I; 8] {
            let mut w = [zero_i(); 8];
            // SAFETY: the caller vouches for the planes of a block of format FMT.
            unsafe {
                match FMT {
                    id::Q8_0 => {
                        for t in 0..8 {
                            w[t] = chunk(p, t, part);
                        }
                        return w;
                    }
                    id::Q3_K => {
                        let (a, b, c) = (chunk(p, 0, part), chunk(p, 1, part), chunk(p, 2, part));
                        let low = and(srl::<6>(a), set_b(3));
                        let middle = and(srl::<4>(b), set_b(12));
                        let tops = or(or(low, middle), and(srl::<2>(c), set_b(48)));
                        let mask = set_b(7);
                        for (u, bits) in [a, b, c, tops].into_iter().enumerate() {
                            w[2 * u] = and(bits, mask);
                            w[2 * u + 1] = and(srl::<3>(bits), mask);
                        }
                        return w;
                    }
                    id::Q2_K => {
                        let low = set_b(3);
                        for u in 0..2 {
                            let q = chunk(p, u, part);
                            w[4 * u] = and(q, low);
                            w[4 * u + 1] = and(srl::<2>(q), low);
                            w[4 * u + 2] = and(srl::<4>(q), low);
                            w[4 * u + 3] = and(srl::<6>(q), low);
                        }
                    }
                    _ => {
                        let low = set_b(15);
                        for c in 0..4 {
                            let q = chunk(p, c, part);
                            w[c] = and(q, low);
                            w[c + 4] = and(srl::<4>(q), low);
                        }
                    }
                }
                match FMT {
                    id::IQ4_NL | id::IQ4_XS | id::MXFP4 => {
                        let values = table(if FMT == id::MXFP4 { &E2M1_CODES } else { &IQ4_CODES });
                        for t in 0..8 {
                            w[t] = look(values, w[t]);
                        }
                    }
                    id::Q5_0 | id::Q5_1 | id::Q5_K => {
                        let h = load(p.add(NIBBLES + 4 * LANES * part));
                        let h = [
                            sll::<4>(h),
                            sll::<3>(h),
                            sll::<2>(h),
                            sll::<1>(h),
                            h,
                            srl::<1>(h),
                            srl::<2>(h),
                            srl::<3>(h),
                        ];
                        let bit = set_b(16);
                        for t in 0..8 {
                            w[t] = or(w[t], and(h[t], bit));
                        }
                    }
                    id::Q6_K => {
                        let two = set_b(48);
                        for u in 0..2 {
                            let h = chunk(p.add(NIBBLES), u, part);
                            let h = [sll::<4>(h), sll::<2>(h), h, srl::<2>(h)];
                            for t in 0..4 {
                                w[4 * u + t] = or(w[4 * u + t], and(h[t], two));
                            }
                        }
                    }
                    _ => {}
                }
            }
            w
        }

        /// What scales the products of block `b` of a superblock.
        #[derive(Clone, Copy)]
        struct Scales {
            d: F,
            /// Minima per block, or the common factor of minima per half.
            m: F,
            /// Integer scales of the halves, as pairs of 16 bits.
            s: I,
            /// Integer minima of the halves, likewise.
            ms: I,
        }

        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn scales<const FMT: u8>(sup: *const u8, b: usize, part: usize) -> Scales {
            let mut out = Scales { d: zero_f(), m: zero_f(), s: zero_i(), ms: zero_i() };
            let (row, two) = (LANES * part, 2 * LANES * part);
            // SAFETY: the caller vouches for the header of a superblock of format FMT.
            unsafe {
                match FMT {
                    id::Q4_0 | id::Q5_0 | id::Q8_0 | id::IQ4_NL => out.d = f16s(sup.add(32 * b + two)),
                    id::Q4_1 | id::Q5_1 => {
                        out.d = f16s(sup.add(32 * b + two));
                        out.m = f16s(sup.add(64 + 32 * b + two));
                    }
                    id::MXFP4 => {
                        // Half of 2^(e - 127), of which the two smallest are subnormal.
                        let e = unsigned(sup.add(16 * b + row));
                        let one = set_i(1);
                        let normal = max(sub(e, one), zero_i());
                        let tiny = and(sllv(set_i(0x0020_0000), e), sra::<31>(sub(e, set_i(2))));
                        out.d = bits(or(sll::<23>(normal), tiny));
                    }
                    id::Q4_K | id::Q5_K => {
                        out.d = mul(f16s(sup.add(two)), to_f(unsigned(sup.add(64 + 16 * b + row))));
                        let m = mul(f16s(sup.add(32 + two)), to_f(unsigned(sup.add(192 + 16 * b + row))));
                        out.m = sub_f(zero_f(), m);
                    }
                    id::IQ4_XS => out.d = mul(f16s(sup.add(two)), to_f(signed(sup.add(32 + 16 * b + row)))),
                    id::Q6_K | id::Q3_K => {
                        out.d = f16s(sup.add(two));
                        out.s = pairs(sup.add(32 + 32 * b + two));
                    }
                    _ => {
                        out.d = f16s(sup.add(two));
                        out.m = sub_f(zero_f(), f16s(sup.add(32 + two)));
                        // Bytes widen with their sign, which the masks remove again.
                        let both = pairs(sup.add(64 + 32 * b + two));
                        out.s = and(both, set_i(0x000f_000f));
                        out.ms = and(srl::<4>(both), set_i(0x000f_000f));
                    }
                }
            }
            out
        }

        /// The activation codes of one block: `n` rows.
        #[derive(Clone, Copy)]
        struct Acts<const N: usize>(*const u8);

        impl<const N: usize> Acts<N> {
            #[inline]
            #[target_feature(enable = $feature)]
            unsafe fn step(self, n: usize, t: usize) -> I {
                // SAFETY: the block holds 8 dwords of each of N rows.
                unsafe { set_i(self.0.add(n * BLOCK + 4 * t).cast::<i32>().read_unaligned()) }
            }

            /// Field `f` of row `n` behind the codes: 0 scale, 1 pair of sums, 2 scaled sum.
            #[inline]
            #[target_feature(enable = $feature)]
            unsafe fn field(self, f: usize, n: usize) -> i32 {
                // SAFETY: three fields of N dwords follow the codes.
                unsafe { self.0.add(N * BLOCK + 4 * (f * N + n)).cast::<i32>().read_unaligned() }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            unsafe fn d(self, n: usize) -> F {
                // SAFETY: as above.
                unsafe { set_f(f32::from_bits(self.field(0, n) as u32)) }
            }

            /// `-bias` times the sum of half `h`'s codes, or of both for `h` 2.
            #[inline]
            #[target_feature(enable = $feature)]
            unsafe fn debias(self, bias: i32, n: usize, h: usize) -> I {
                if bias == 0 {
                    return zero_i();
                }
                // SAFETY: as above.
                let pair = unsafe { self.field(1, n) };
                set_i(-bias * [i32::from(pair as i16), pair >> 16, sum_of(pair)][h])
            }
        }

        /// The integer dot of a block whose halves have scales of their own, from the dots of the halves.
        #[inline]
        #[target_feature(enable = $feature)]
        fn combine(dots: [I; 2], s: I) -> I {
            let (low, high) = (sra::<16>(sll::<16>(s)), sra::<16>(s));
            add(mul_i(dots[0], low), mul_i(dots[1], high))
        }

        /// Adds one block's products to an accumulator; see `hob_compute::act`.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn finish<const FMT: u8, const N: usize>(
            acc: F,
            dot: I,
            by: &Scales,
            x: Acts<N>,
            n: usize,
        ) -> F {
            // SAFETY: the block of activations is the caller's.
            unsafe {
                let dx = x.d(n);
                let acc = fma(to_f(dot), mul(by.d, dx), acc);
                match const { minima(FMT) } {
                    BLOCK_MINIMA => fma(by.m, set_f(f32::from_bits(x.field(2, n) as u32)), acc),
                    HALF_MINIMA => fma(to_f(madd(set_i(x.field(1, n)), by.ms)), mul(by.m, dx), acc),
                    _ => acc,
                }
            }
        }

        /// Decode: 1 to 4 activation rows against one group of 16 weight rows, streamed once.
        /// `y[r * stride + row]`.
        ///
        /// # Safety
        /// Needs the instruction set. The group holds whole superblocks of `format`, the tile as many blocks; `y` has
        /// room for the tile's rows.
        #[target_feature(enable = $feature)]
        pub unsafe fn few(
            format: Format,
            stream: Stream,
            ahead: usize,
            tile: Tile,
            y: &mut [f32],
            stride: usize,
        ) {
            debug_assert!(y.len() >= (tile.n - 1) * stride + 16);
            // SAFETY: the caller's contract is the kernels' contract.
            unsafe { by_format!(format, few_rows, (stream, ahead, tile, y, stride)) }
        }

        #[target_feature(enable = $feature)]
        unsafe fn few_rows<const FMT: u8>(
            stream: Stream,
            ahead: usize,
            tile: Tile,
            y: &mut [f32],
            stride: usize,
        ) {
            let x = tile.bytes.as_ptr();
            // SAFETY: as in `few`.
            unsafe {
                match tile.n {
                    1 => few_kernel::<FMT, 1>(stream, ahead, x, y, stride),
                    2 => few_kernel::<FMT, 2>(stream, ahead, x, y, stride),
                    3 => few_kernel::<FMT, 3>(stream, ahead, x, y, stride),
                    _ => few_kernel::<FMT, 4>(stream, ahead, x, y, stride),
                }
            }
        }

        #[target_feature(enable = $feature)]
        unsafe fn few_kernel<const FMT: u8, const N: usize>(
            stream: Stream,
            ahead: usize,
            act: *const u8,
            y: &mut [f32],
            stride: usize,
        ) {
            let shape = const { shape_of(FMT) };
            let mut acc = [[zero_f(); PARTS]; N];
            let mut x = Acts::<N>(act);
            let mut left = stream.group.len();
            for sup in stream.group.chunks_exact(const { shape_of(FMT).bytes() }) {
                if ahead > 0 {
                    let from = if left > ahead { sup.as_ptr() } else { stream.next.wrapping_sub(left) };
                    for line in (0..shape.bytes()).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead + line).cast());
                    }
                }
                left -= shape.bytes();
                for b in 0..shape.blocks() {
                    // SAFETY: a superblock holds its header and the planes of its blocks; the activation has one block
                    // of N rows for each.
                    unsafe {
                        for part in 0..PARTS {
                            let w = codes::<FMT>(
                                sup.as_ptr().add(shape.header.bytes() + b * shape.planes.bytes()),
                                part,
                            );
                            let by = scales::<FMT>(sup.as_ptr(), b, part);
                            for n in 0..N {
                                let dot = few_dot::<FMT, N>(&w, x, n, by.s);
                                acc[n][part] = finish::<FMT, N>(acc[n][part], dot, &by, x, n);
                            }
                        }
                        x = Acts(x.0.add(block_bytes(N)));
                    }
                }
            }
            for (n, acc) in acc.iter().enumerate() {
                for (part, acc) in acc.iter().enumerate() {
                    // SAFETY: the caller left room for 16 floats in each of the N rows.
                    unsafe { store_f(y.as_mut_ptr().add(n * stride + part * LANES), *acc) };
                }
            }
        }

        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn few_dot<const FMT: u8, const N: usize>(w: &[I; 8], x: Acts<N>, n: usize, s: I) -> I {
            // SAFETY: the block of activations is the caller's.
            unsafe {
                if const { halves(FMT) } {
                    let mut dots = [x.debias(bias(FMT), n, 0), x.debias(bias(FMT), n, 1)];
                    for t in 0..8 {
                        dots[t / 4] = dp(dots[t / 4], w[t], x.step(n, t));
                    }
                    return combine(dots, s);
                }
                // Two chains, so that products do not wait for each other.
                let mut dots = [x.debias(bias(FMT), n, 2), zero_i()];
                for t in 0..8 {
                    dots[t / 4] = dp(dots[t / 4], w[t], x.step(n, t));
                }
                add(dots[0], dots[1])
            }
        }

        /// Weight rows per prefill unit: two registers.
        pub const HEIGHT: usize = 2 * LANES;
        /// Bytes of one step of 4 columns.
        const STEP_BYTES: usize = 4 * HEIGHT;

        /// Unpacked weights of one stretch.
        #[repr(C, align(64))]
        pub struct Scratch {
            /// `[block][8 steps][HEIGHT rows][4 columns]`
            codes: [u8; STRETCH * 8 * STEP_BYTES],
            /// `[block][HEIGHT]` each.
            d: [f32; STRETCH * HEIGHT],
            m: [f32; STRETCH * HEIGHT],
            /// Pairs of 16 bits.
            s: [i32; STRETCH * HEIGHT],
            ms: [i32; STRETCH * HEIGHT],
        }

        impl Scratch {
            pub fn new() -> Box<Scratch> {
                // Built on the heap: too much for small thread stacks.
                let layout = std::alloc::Layout::new::<Scratch>();
                // SAFETY: the size is not zero, and all-zero bytes are a valid value.
                unsafe {
                    let raw: *mut Scratch = std::alloc::alloc_zeroed(layout).cast();
                    if raw.is_null() {
                        std::alloc::handle_alloc_error(layout);
                    }
                    Box::from_raw(raw)
                }
            }
        }

        /// Products of one or two groups ([`HEIGHT`] rows) with all activation rows: `y[r * HEIGHT + i]`.
        ///
        /// # Safety
        /// Needs the instruction set. Each group holds as many superblocks of `format` as the activation has blocks for;
        /// an empty second group stands for absent rows. `y` has `acts.rows * HEIGHT` floats.
        #[target_feature(enable = $feature)]
        pub unsafe fn gemm(
            format: Format,
            groups: [&[u8]; 2],
            acts: Packed,
            scratch: &mut Scratch,
            y: &mut [f32],
        ) {
            debug_assert!(y.len() >= acts.rows * HEIGHT);
            // SAFETY: the caller's contract is the kernels' contract.
            unsafe { by_format!(format, gemm_format, (groups, acts, scratch, y)) }
        }

        #[target_feature(enable = $feature)]
        unsafe fn gemm_format<const FMT: u8>(
            groups: [&[u8]; 2],
            acts: Packed,
            scratch: &mut Scratch,
            y: &mut [f32],
        ) {
            let mut start = 0;
            while start < acts.blocks {
                let blocks = (acts.blocks - start).min(STRETCH);
                // SAFETY: blocks start..start + blocks exist in every non-empty group; tiles hold all blocks.
                unsafe {
                    for r in 0..2 {
                        unpack::<FMT>(groups[r / PARTS], r, start, blocks, scratch);
                    }
                    for tile in acts.tiles() {
                        let x = tile.bytes.as_ptr().add(start * block_bytes(tile.n));
                        let out = y.as_mut_ptr().add(tile.row * HEIGHT);
                        let first = start == 0;
                        match tile.n {
                            1 => gemm_kernel::<FMT, 1>(scratch, blocks, x, out, first),
                            2 => gemm_kernel::<FMT, 2>(scratch, blocks, x, out, first),
                            3 => gemm_kernel::<FMT, 3>(scratch, blocks, x, out, first),
                            _ => gemm_kernel::<FMT, 4>(scratch, blocks, x, out, first),
                        }
                    }
                }
                start += blocks;
            }
        }

        /// Unpacks register `r` of the unit's rows.
        #[target_feature(enable = $feature)]
        unsafe fn unpack<const FMT: u8>(
            group: &[u8],
            r: usize,
            start: usize,
            blocks: usize,
            to: &mut Scratch,
        ) {
            let shape = const { shape_of(FMT) };
            let part = if PARTS == 1 { 0 } else { r };
            for b in 0..blocks {
                let (sup, at) = ((start + b) / shape.blocks() * shape.bytes(), (start + b) % shape.blocks());
                // SAFETY: block indices stay below STRETCH, and non-empty groups reach start + blocks.
                unsafe {
                    let (w, by) = if group.is_empty() {
                        ([zero_i(); 8], Scales { d: zero_f(), m: zero_f(), s: zero_i(), ms: zero_i() })
                    } else {
                        let sup = group.as_ptr().add(sup);
                        (
                            codes::<FMT>(sup.add(shape.header.bytes() + at * shape.planes.bytes()), part),
                            scales::<FMT>(sup, at, part),
                        )
                    };
                    for t in 0..8 {
                        store(to.codes.as_mut_ptr().add((b * 8 + t) * STEP_BYTES + 4 * LANES * r), w[t]);
                    }
                    let at = b * HEIGHT + r * LANES;
                    store_f(to.d.as_mut_ptr().add(at), by.d);
                    if const { minima(FMT) != NO_MINIMA } {
                        store_f(to.m.as_mut_ptr().add(at), by.m);
                    }
                    if const { halves(FMT) } {
                        store(to.s.as_mut_ptr().add(at).cast(), by.s);
                        store(to.ms.as_mut_ptr().add(at).cast(), by.ms);
                    }
                }
            }
        }

        /// One tile of N activation rows by HEIGHT weight rows, continuing the accumulators in `y` unless `first`.
        #[target_feature(enable = $feature)]
        unsafe fn gemm_kernel<const FMT: u8, const N: usize>(
            w: &Scratch,
            blocks: usize,
            act: *const u8,
            y: *mut f32,
            first: bool,
        ) {
            let mut acc = [[zero_f(); 2]; N];
            // SAFETY: the caller vouches for `blocks` blocks on both sides and N rows of HEIGHT floats at `y`.
            unsafe {
                if !first {
                    for n in 0..N {
                        acc[n] = [load_f(y.add(n * HEIGHT)), load_f(y.add(n * HEIGHT + LANES))];
                    }
                }
                for b in 0..blocks {
                    let x = Acts::<N>(act.add(b * block_bytes(N)));
                    let at = b * HEIGHT;
                    let by: [Scales; 2] = std::array::from_fn(|r| {
                        let at = at + r * LANES;
                        let (mut s, mut ms) = (zero_i(), zero_i());
                        if const { halves(FMT) } {
                            s = load(w.s.as_ptr().add(at).cast());
                            ms = load(w.ms.as_ptr().add(at).cast());
                        }
                        Scales { d: load_f(w.d.as_ptr().add(at)), m: load_f(w.m.as_ptr().add(at)), s, ms }
                    });
                    let dots = block_dots::<FMT, N>(w.codes.as_ptr().add(b * 8 * STEP_BYTES), x, &by);
                    for n in 0..N {
                        for r in 0..2 {
                            acc[n][r] = finish::<FMT, N>(acc[n][r], dots[n][r], &by[r], x, n);
                        }
                    }
                }
                for n in 0..N {
                    store_f(y.add(n * HEIGHT), acc[n][0]);
                    store_f(y.add(n * HEIGHT + LANES), acc[n][1]);
                }
            }
        }

        /// Integer dots of one unpacked block.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn block_dots<const FMT: u8, const N: usize>(
            codes: *const u8,
            x: Acts<N>,
            by: &[Scales; 2],
        ) -> [[I; 2]; N] {
            let mut total = [[zero_i(); 2]; N];
            let parts = if const { halves(FMT) } { 2 } else { 1 };
            for h in 0..parts {
                let mut dot = [[zero_i(); 2]; N];
                // SAFETY: as in `gemm_kernel`.
                unsafe {
                    for n in 0..N {
                        dot[n] = [x.debias(bias(FMT), n, if parts == 2 { h } else { 2 }); 2];
                    }
                    for t in h * 4..if parts == 2 { h * 4 + 4 } else { 8 } {
                        let low = load(codes.add(t * STEP_BYTES));
                        let high = load(codes.add(t * STEP_BYTES + 4 * LANES));
                        for n in 0..N {
                            let v = x.step(n, t);
                            dot[n][0] = dp(dot[n][0], low, v);
                            dot[n][1] = dp(dot[n][1], high, v);
                        }
                    }
                }
                if parts == 1 {
                    return dot;
                }
                for n in 0..N {
                    for r in 0..2 {
                        let s = if h == 0 { sra::<16>(sll::<16>(by[r].s)) } else { sra::<16>(by[r].s) };
                        total[n][r] = add(total[n][r], mul_i(dot[n][r], s));
                    }
                }
            }
            total
        }
    };
}
