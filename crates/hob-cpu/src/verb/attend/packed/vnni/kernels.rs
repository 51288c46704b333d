//! The kernels, written once for a register width: a macro, because a function can only be compiled for the instruction
//! set its attribute names, and intrinsics of two widths share no trait.
//!
//! A register tile has `R` rows and `P` vectors of positions (K) or dimensions (V). Integer sums are exact, so only chains
//! of floats have an order: ascending groups for scores, ascending blocks for what V adds up to.

/// The arrays give, by number of rows, the most vectors of a register tile of 4-bit K, of 8-bit K and of V.
macro_rules! kernels {
    ($feature:literal, k4: $k4:expr, k8: $k8:expr, v: $v:expr, rows: $($rows:literal)*) => {
        /// Calls `$f::<$asym, rows, vectors>`.
        macro_rules! tiles {
            ($f:ident, $asym:literal, $vectors:expr, $args:expr) => {
                match $args.rows {
                    $($rows => $f::<$asym, $rows, { $vectors[$rows] }>($args),)*
                    rows => unreachable!("no tile of {rows} rows"),
                }
            };
        }

        /// The kernels of the table, each a choice of tile by rows.
        macro_rules! entries {
            ($name:ident($args:ty) = $tile:ident, $asym:literal, $vectors:expr) => {
                /// # Safety
                /// Needs the instruction set, and operands that fit.
                #[target_feature(enable = $feature)]
                unsafe fn $name(args: &mut $args) {
                    // SAFETY: the caller's word.
                    unsafe { tiles!($tile, $asym, $vectors, args) }
                }
            };
        }

        entries!(scores_q8(ScoreArgs) = k8_tile, false, $k8);
        entries!(scores_q4(ScoreArgs) = k4_tile, false, $k4);
        entries!(scores_asym4(ScoreArgs) = k4_tile, true, $k4);
        entries!(weigh_q8(WeighArgs) = v8_tile, false, $v);
        entries!(weigh_q4(WeighArgs) = v4_tile, false, $v);
        entries!(weigh_asym4(WeighArgs) = v4_tile, true, $v);

        /// # Safety
        /// Needs the instruction set.
        #[target_feature(enable = $feature)]
        unsafe fn quantize(queries: &mut Queries, from: QueryRows) {
            queries.fill(from);
        }

        /// Most rows of a chunk.
        const ROWS: usize = [$($rows),*].len();

        pub static KERNELS: Kernels = Kernels {
            rows: ROWS,
            quantize,
            scores_q8,
            scores_q4,
            scores_asym4,
            weigh_q8,
            weigh_q4,
            weigh_asym4,
        };

        /// Vectors of words that a line of bytes becomes.
        const PER_LINE: usize = LINE / (2 * LANES);

        /// Vectors of the positions of a block.
        const VECTORS: usize = BLOCK_POSITIONS / LANES;

        /// `P` vectors of f16 scales or minima as floats.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn scales<const P: usize>(at: *const u8) -> [F; P] {
            let mut d = [zero_f(); P];
            for v in 0..P {
                // SAFETY: the caller vouches for 2 bytes per lane of P vectors.
                d[v] = unsafe { f16s(at.add(2 * LANES * v)) };
            }
            d
        }

        /// `dot = fma(int, dq * d, dot)` of `R` rows.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn add_group<const R: usize, const P: usize>(
            dots: *mut f32,
            ints: &[[I; P]; R],
            dq: *const f32,
            d: &[F; P],
        ) {
            for r in 0..R {
                // SAFETY: the caller vouches for a scale and P vectors of dots of R rows.
                unsafe {
                    let dq = set_f(*dq.add(r));
                    for v in 0..P {
                        let dot = dots.add(r * PAGE_POSITIONS + LANES * v);
                        store_f(dot, fma(to_f(ints[r][v]), mul(dq, d[v]), load_f(dot)));
                    }
                }
            }
        }

        /// Sets the dots of `rows` rows to `f(dot)`.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn each_dot(dots: *mut f32, rows: usize, f: impl Fn(F) -> F) {
            for r in 0..rows {
                for v in 0..VECTORS {
                    // SAFETY: the caller vouches for 64 dots of every row.
                    unsafe {
                        let dot = dots.add(r * PAGE_POSITIONS + LANES * v);
                        store_f(dot, f(load_f(dot)));
                    }
                }
            }
        }

        /// 4-bit K. Codes stay unsigned: what they exceed the signed ones of q4 by comes off through the first value of
        /// the integer sum. Groups go one after the other, as they lie in memory; their dots wait in the output.
        ///
        /// # Safety
        /// Needs the instruction set; operands that fit, of `R` rows.
        #[inline(never)]
        #[target_feature(enable = $feature)]
        unsafe fn k4_tile<const ASYM: bool, const R: usize, const P: usize>(args: &mut ScoreArgs) {
            let groups = args.head_dim / KV_GROUP;
            let headers = groups * SCALE_BYTES;
            let mut ahead = Ahead::over(args.ahead, groups * (VECTORS + Q4_GROUP / LINE), args.k);
            let (mask, dots) = (set_b(15), args.out.as_mut_ptr());
            // SAFETY: every group has scales and codes of 64 positions, 8 words, a scale and a sum of R rows; the output
            // has 64 positions of R rows.
            unsafe {
                each_dot(dots, R, |_| zero_f());
                let codes = args.k.as_ptr().add(if ASYM { 2 * headers } else { headers });
                for g in 0..groups {
                    let (words, sums) = (args.words.as_ptr().add(8 * R * g), args.sums.as_ptr().add(R * g));
                    let dq = args.scales.as_ptr().add(R * g);
                    for at in (0..BLOCK_POSITIONS).step_by(P * LANES) {
                        ahead.fetch::<P>();
                        let mut ints = [[zero_i(); P]; R];
                        if !ASYM {
                            for r in 0..R {
                                ints[r] = [set_i(-8 * *sums.add(r)); P];
                            }
                        }
                        for j in 0..4 {
                            let from = codes.add(g * Q4_GROUP + 4 * (j * BLOCK_POSITIONS + at));
                            let mut bytes = [zero_i(); P];
                            for v in 0..P {
                                if 4 * LANES >= LINE || j % 2 == 0 {
                                    ahead.fetch::<1>();
                                }
                                bytes[v] = load(from.add(4 * LANES * v));
                            }
                            for half in 0..2 {
                                let mut codes = [zero_i(); P];
                                for v in 0..P {
                                    codes[v] = and(if half == 0 { bytes[v] } else { srl4(bytes[v]) }, mask);
                                }
                                for r in 0..R {
                                    let x = word(words.add((2 * j + half) * R + r).cast());
                                    for v in 0..P {
                                        ints[r][v] = dp(ints[r][v], codes[v], x);
                                    }
                                }
                            }
                        }
                        let d = scales::<P>(args.k.as_ptr().add(g * SCALE_BYTES + 2 * at));
                        add_group(dots.add(at), &ints, dq, &d);
                        if ASYM {
                            let m = scales::<P>(args.k.as_ptr().add(headers + g * SCALE_BYTES + 2 * at));
                            for r in 0..R {
                                ints[r] = [word(sums.add(r).cast()); P];
                            }
                            add_group(dots.add(at), &ints, dq, &m);
                        }
                    }
                }
                let factor = set_f(args.factor);
                each_dot(dots, R, |dot| mul(dot, factor));
            }
        }

        /// 8-bit K: products of 16 bits. There is no such K above a minimum.
        ///
        /// # Safety
        /// Needs the instruction set; operands that fit, of `R` rows.
        #[inline(never)]
        #[target_feature(enable = $feature)]
        unsafe fn k8_tile<const ASYM: bool, const R: usize, const P: usize>(args: &mut ScoreArgs) {
            const { assert!(!ASYM) };
            let groups = args.head_dim / KV_GROUP;
            let mut ahead = Ahead::over(args.ahead, groups * (VECTORS + Q8_GROUP / LINE), args.k);
            let dots = args.out.as_mut_ptr();
            // SAFETY: every group has scales and codes of 64 positions, 16 words and a scale of R rows; the output has 64
            // positions of R rows.
            unsafe {
                each_dot(dots, R, |_| zero_f());
                let codes = args.k.as_ptr().add(groups * SCALE_BYTES);
                for g in 0..groups {
                    let words = args.words.as_ptr().add(16 * R * g);
                    for at in (0..BLOCK_POSITIONS).step_by(P * LANES) {
                        ahead.fetch::<P>();
                        let mut ints = [[zero_i(); P]; R];
                        for line in 0..16 / PER_LINE {
                            ahead.fetch::<P>();
                            for t in line * PER_LINE..(line + 1) * PER_LINE {
                                let from = codes.add(g * Q8_GROUP + 2 * (t * BLOCK_POSITIONS + at));
                                let mut codes = [zero_i(); P];
                                for v in 0..P {
                                    codes[v] = widen(from.add(2 * LANES * v));
                                }
                                for r in 0..R {
                                    let x = word(words.add(t * R + r).cast());
                                    for v in 0..P {
                                        ints[r][v] = dpw(ints[r][v], codes[v], x);
                                    }
                                }
                            }
                        }
                        let d = scales::<P>(args.k.as_ptr().add(g * SCALE_BYTES + 2 * at));
                        add_group(dots.add(at), &ints, args.scales.as_ptr().add(R * g), &d);
                    }
                }
                let factor = set_f(args.factor);
                each_dot(dots, R, |dot| mul(dot, factor));
            }
        }

        /// Integer weights of all rows for group `g`: per row 64 bytes (`WIDE`: words) in the order of [`quads`]
        /// ([`pairs`]), and what the rows' integer sums are multiplied by. Not unrolled over rows by the tile: it would keep
        /// products that registers cannot hold.
        #[inline(never)]
        #[target_feature(enable = $feature)]
        unsafe fn weights<const WIDE: bool>(args: &WeighArgs, g: usize, to: *mut Weights) {
            let (mut up, mut most) = ([0f32; MOST], [zero_f(); MOST]);
            let rows = args.rows.min(MOST);
            // SAFETY: there are scales of every group, 64 weights of every row, and room for MOST rows.
            unsafe {
                let d = scales::<VECTORS>(args.v.as_ptr().add(g * SCALE_BYTES));
                let products = (&raw mut (*to).products).cast::<f32>();
                for r in 0..rows {
                    let p = args.p.as_ptr().add(r * PAGE_POSITIONS);
                    for v in 0..VECTORS {
                        let x = mul(load_f(p.add(LANES * v)), d[v]);
                        store_f(products.add(BLOCK_POSITIONS * r + LANES * v), x);
                        // The second operand wins against NaN.
                        most[r] = max(x, most[r]);
                    }
                }
                let top = _mm_set1_ps(if WIDE { 32767.0 } else { 255.0 });
                for r in (0..rows).step_by(4) {
                    let m = maxima(most[r], most[r + 1], most[r + 2], most[r + 3]);
                    let by = _mm_div_ps(top, m);
                    let infinity = _mm_set1_ps(f32::INFINITY);
                    let fine = _mm_and_ps(_mm_cmpgt_ps(m, _mm_setzero_ps()), _mm_cmplt_ps(by, infinity));
                    _mm_storeu_ps(up.as_mut_ptr().add(r), _mm_and_ps(by, fine));
                    let down = _mm_and_ps(_mm_div_ps(m, top), fine);
                    _mm_storeu_ps((&raw mut (*to).scales).cast::<f32>().add(r), down);
                }
                for r in 0..rows {
                    let (x, by) = (products.add(BLOCK_POSITIONS * r), set_f(up[r]));
                    let mut w = [zero_i(); VECTORS];
                    for v in 0..VECTORS {
                        w[v] = to_i(mul(load_f(x.add(LANES * v)), by));
                    }
                    let codes = (&raw mut (*to).codes).cast::<u8>().add(if WIDE { 128 } else { 64 } * r);
                    if WIDE {
                        for v in (0..VECTORS).step_by(2) {
                            store(codes.add(2 * LANES * v), shorts(w[v], w[v + 1]));
                        }
                    } else {
                        for v in (0..VECTORS).step_by(4) {
                            store(codes.add(LANES * v), bytes([w[v], w[v + 1], w[v + 2], w[v + 3]]));
                        }
                    }
                }
            }
        }

        /// Where [`weights`] leaves the bytes of four positions from `position` on: packing works within 128 bits.
        const fn quads(position: usize) -> usize {
            let (vector, lane) = (position / LANES, position % LANES);
            4 * LANES * (vector / 4) + 4 * (vector % 4) + 4 * lane
        }

        /// The same of words.
        const fn pairs(position: usize) -> usize {
            let (vector, lane) = (position / LANES, position % LANES);
            4 * LANES * (vector / 2) + 8 * (vector % 2) + 4 * lane
        }

        /// `acc = fma(int, scale, acc)` of `R` rows and `P` vectors of dimensions.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn add_block<const R: usize, const P: usize>(
            acc: *mut f32,
            step: usize,
            ints: &[[I; P]; R],
            scales: *const f32,
        ) {
            for r in 0..R {
                // SAFETY: the caller vouches for a scale per row.
                let by = unsafe { set_f(*scales.add(r)) };
                for v in 0..P {
                    // SAFETY: the caller vouches for P vectors in each of R rows.
                    unsafe {
                        let to = acc.add(r * step + LANES * v);
                        store_f(to, fma(to_f(ints[r][v]), by, load_f(to)));
                    }
                }
            }
        }

        /// 4-bit V: unsigned weights times codes, signed ones of q4 or those above a minimum.
        ///
        /// # Safety
        /// Needs the instruction set; operands that fit, of `R` rows.
        #[inline(never)]
        #[target_feature(enable = $feature)]
        unsafe fn v4_tile<const ASYM: bool, const R: usize, const P: usize>(args: &mut WeighArgs) {
            const { assert!(P * LANES <= KV_GROUP && R <= MOST) };
            let (dim, groups) = (args.head_dim, args.head_dim / KV_GROUP);
            let headers = groups * SCALE_BYTES;
            let mut ahead = Ahead::over(args.ahead, groups * (2 + Q4_GROUP / LINE), args.v);
            let (mask, nibbles) = (set_b(15), nibbles());
            let mut memory = MaybeUninit::<Weights>::uninit();
            let w = memory.as_mut_ptr();
            // SAFETY: every group has scales of 64 positions, all have 8 rows of codes, and `acc` R rows.
            unsafe {
                let (w_codes, w_scales) = ((&raw const (*w).codes).cast::<u8>(), (&raw const (*w).scales).cast());
                let codes = args.v.as_ptr().add(if ASYM { 2 * headers } else { headers });
                for g in 0..groups {
                    ahead.fetch::<2>();
                    weights::<false>(args, g, w);
                    for at in (g * KV_GROUP..(g + 1) * KV_GROUP).step_by(P * LANES) {
                        let mut ints = [[zero_i(); P]; R];
                        for j in 0..8 {
                            let from = codes.add(4 * (j * dim + at));
                            let by = w_codes.add(quads(8 * j));
                            let mut bytes = [zero_i(); P];
                            for v in 0..P {
                                if 4 * LANES >= LINE || (at / LANES + v) % 2 == 0 {
                                    ahead.fetch::<1>();
                                }
                                bytes[v] = load(from.add(4 * LANES * v));
                            }
                            for half in 0..2 {
                                let mut codes = [zero_i(); P];
                                for v in 0..P {
                                    let bytes = if half == 0 { bytes[v] } else { srl4(bytes[v]) };
                                    codes[v] = if ASYM { and(bytes, mask) } else { low_nibbles(nibbles, bytes) };
                                }
                                for r in 0..R {
                                    let x = word(by.add(64 * r + 16 * half));
                                    for v in 0..P {
                                        ints[r][v] = dp(ints[r][v], x, codes[v]);
                                    }
                                }
                            }
                        }
                        add_block(args.acc.as_mut_ptr().add(at), dim, &ints, w_scales);
                    }
                    if ASYM {
                        add_minima::<R>(args, g);
                    }
                }
            }
        }

        /// Adds `sum(p * m)`, one fma chain over ascending positions, to all dimensions of group `g`.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn add_minima<const R: usize>(args: &mut WeighArgs, g: usize) {
            let mut sums = [0f32; R];
            let mut wide = [0f32; BLOCK_POSITIONS];
            // SAFETY: minima lie behind the scales; there are 64 weights and 32 dimensions of every row.
            unsafe {
                let m = args.v.as_ptr().add((args.head_dim / KV_GROUP + g) * SCALE_BYTES);
                let m = scales::<VECTORS>(m);
                for v in 0..VECTORS {
                    store_f(wide.as_mut_ptr().add(LANES * v), m[v]);
                }
                for i in 0..BLOCK_POSITIONS {
                    for r in 0..R {
                        sums[r] = (*args.p.get_unchecked(r * PAGE_POSITIONS + i)).mul_add(wide[i], sums[r]);
                    }
                }
                for r in (0..R).filter(|&r| sums[r] != 0.0) {
                    let acc = args.acc.as_mut_ptr().add(r * args.head_dim + g * KV_GROUP);
                    (0..KV_GROUP).for_each(|i| *acc.add(i) += sums[r]);
                }
            }
        }

        /// 8-bit V: products of 16 bits. There is no such V above a minimum.
        ///
        /// # Safety
        /// Needs the instruction set; operands that fit, of `R` rows.
        #[inline(never)]
        #[target_feature(enable = $feature)]
        unsafe fn v8_tile<const ASYM: bool, const R: usize, const P: usize>(args: &mut WeighArgs) {
            const { assert!(!ASYM && P * LANES <= KV_GROUP && R <= MOST) };
            let (dim, groups) = (args.head_dim, args.head_dim / KV_GROUP);
            let mut ahead = Ahead::over(args.ahead, groups * (2 + Q8_GROUP / LINE), args.v);
            let mut memory = MaybeUninit::<Weights>::uninit();
            let w = memory.as_mut_ptr();
            // SAFETY: every group has scales of 64 positions, all have 32 rows of codes, and `acc` R rows.
            unsafe {
                let (w_codes, w_scales) = ((&raw const (*w).codes).cast::<u8>(), (&raw const (*w).scales).cast());
                let codes = args.v.as_ptr().add(groups * SCALE_BYTES);
                for g in 0..groups {
                    ahead.fetch::<2>();
                    weights::<true>(args, g, w);
                    for at in (g * KV_GROUP..(g + 1) * KV_GROUP).step_by(P * LANES) {
                        let mut ints = [[zero_i(); P]; R];
                        for four in 0..16 {
                            let by = w_codes.add(pairs(4 * four));
                            for half in 0..2 {
                                let from = codes.add(2 * ((2 * four + half) * dim + at));
                                let mut codes = [zero_i(); P];
                                for v in 0..P {
                                    if (at / LANES + v) % PER_LINE == 0 {
                                        ahead.fetch::<1>();
                                    }
                                    codes[v] = widen(from.add(2 * LANES * v));
                                }
                                for r in 0..R {
                                    let x = word(by.add(128 * r + 4 * half));
                                    for v in 0..P {
                                        ints[r][v] = dpw(ints[r][v], codes[v], x);
                                    }
                                }
                            }
                        }
                        add_block(args.acc.as_mut_ptr().add(at), dim, &ints, w_scales);
                    }
                }
            }
        }
    };
}
