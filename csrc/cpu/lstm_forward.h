// LSTM, forward: one pass over time. Each group of threads owns hidden units, with their weights, memory and masks.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

// Rows whose last step is t: their state goes to h_n and c_n.
inline bool ends(const Sequence& sequence, int64_t t, int64_t b) { return b >= sequence.continued_by(t); }

// Rows of `width` numbers that a chunk may have: enough for the products to run at speed, few enough for the caches.
// Fewer where a backward computes gates again, whose caller asked for little memory. Chunks are of like size, as far as
// whole steps allow, so that none takes more room than it must.
template <class T>
int64_t chunk_rows(const Sequence& sequence, int64_t width, bool again = false) {
  const int64_t bytes = again ? 1 << 20 : 4 << 20, fewest = again ? 192 : 512;
  const int64_t fit = bytes / ((width + 1) * static_cast<int64_t>(sizeof(T)));  // a layer may have no units
  const int64_t most = fit < fewest ? fewest : fit, chunks = tiles_of(sequence.rows, most);
  // A chunk ends with a whole step: what is left over of an even share may be a row less than one.
  return chunks <= 1 ? most : least(most, tiles_of(sequence.rows, chunks) + sequence.batch - 1);
}
// The most rows that a chunk of a sequence can come to have.
inline int64_t largest_chunk(const Sequence& sequence, int64_t most) {
  return least(sequence.rows, most > sequence.batch ? most : sequence.batch);
}

template <class T>
class LstmForwardPass {
  using V = Vec<T>;
  using Math = SimdMath<T>;
  static constexpr int NV = 4;

 public:
  explicit LstmForwardPass(const LstmForward<T>& p)
      : p_(p),
        H_(p.units),
        P_(p.projected),
        B_(p.sequence.batch),
        most_(chunk_rows<T>(p.sequence, NV * H_)),
        sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, B_, H_),
        m_ih_(p.w_ih, NV * H_, p.inputs, FLAG_WEIGHT_IH, KIND_WEIGHT_IH, p.masks),
        w_ih_(p.parallel, m_ih_, p.sparing ? sparing_packing(p, m_ih_) : Packing::AT_ONCE),
        w_hh_(
            pack_gates<NV>(p.parallel, MaskedWeight<T>(p.w_hh, NV * H_, P_, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, p.masks))),
        w_hr_(nullptr, nullptr),
        bias_(scratch<T>(p.b_ih ? NV * H_ : 0)),
        buffer_(scratch<T>(p.gates ? 0 : largest_chunk(p.sequence, most_) * NV * H_)),
        read_(scratch<T>(2 * B_ * P_)),
        h_(scratch<T>(B_ * P_)),
        c_(scratch<T>(B_ * H_)),
        outputs_(scratch<T>(p.w_hr ? B_ * H_ : 0)) {
    if (p.w_hr)
      w_hr_ = pack_gates<1>(p.parallel, MaskedWeight<T>(p.w_hr, P_, H_, FLAG_WEIGHT_HR, KIND_WEIGHT_HR, p.masks));
    for (int64_t i = 0; p.b_ih && i < NV * H_; ++i) bias_[i] = p.b_ih[i] + p.b_hh[i];
    for (int64_t b = 0; b < B_; ++b) enter_row(b);
  }

  void run() {
    Stopwatch watch;
    for (int64_t begin = 0; begin < p_.sequence.steps; begin = chunk_.end) {
      chunk_ = Chunk::from(p_.sequence, begin, most_);
      gates_ = p_.gates ? p_.gates + chunk_.row * NV * H_ : buffer_.get();
      input_product<NV>(p_.parallel, p_.x + chunk_.row * p_.inputs, chunk_.rows, w_ih_, p_.b_ih ? bias_.get() : nullptr,
                        gates_);
      watch.lap(INPUT_PRODUCT);
      steps();
      watch.restart();
    }
  }

 private:
  // Both halves of read_ start as h_0, so that a packed row finds it whenever its reverse pass begins.
  void enter_row(int64_t b) {
    for (int64_t u = 0; u < H_; u += LANES) {
      const V c = load(p_.c0 + b * H_ + u, H_ - u);
      store(&c_[b * H_ + u], enter<Math>(masks_.dead_units(), T(1), masks_.dead(b, u), c), H_ - u);
    }
    for (int64_t u = 0; u < P_; u += LANES) {
      const V h = load(p_.h0 + b * P_ + u, P_ - u), read = masks_.hidden(b, u, h);
      store(&h_[b * P_ + u], h, P_ - u);
      for (int half = 0; half < 2; ++half) store(&read_[(half * B_ + b) * P_ + u], read, P_ - u);
    }
  }

  void steps() {
    const int64_t tiles = tiles_of(H_, LANES), phases = p_.w_hr ? 2 : 1;
    const int groups = groups_for(p_.parallel, tiles, 8.0 * B_ * H_ * P_);
    Team(p_.parallel, (chunk_.end - chunk_.begin) * phases, groups).run([&](int64_t step, int group) {
      const int64_t s = chunk_.begin + step / phases, t = p_.sequence.time(s);
      if (step % phases == 0) {
        for (int64_t tile = share(tiles, group, groups); tile < share(tiles, group + 1, groups); ++tile)
          units(s, t, tile * LANES);
      } else {
        const int64_t columns = tiles_of(P_, LANES);
        for (int64_t tile = share(columns, group, groups); tile < share(columns, group + 1, groups); ++tile)
          project(s, t, tile * LANES);
      }
    });
  }

  // LANES hidden units at step t: recurrent product, gates, memory.
  void units(int64_t s, int64_t t, int64_t u) {
    const int64_t n = H_ - u, row0 = p_.sequence.row(t);
    const T* read = &read_[(s % 2) * B_ * P_];
    product<NV>(
        0, p_.sequence.active(t), [&](int64_t b) { return read + b * P_; }, &w_hh_[u * P_ * NV], P_,
        [&](int64_t b) {
          for (int v = 0; v < NV; ++v) prefetch<true>(gates_ + ((row0 - chunk_.row + b) * NV + v) * H_ + u, LANES);
          if (p_.cells) prefetch<true>(p_.cells + (row0 + b) * H_ + u, LANES);
          if (!p_.w_hr) prefetch<true>(p_.out + (row0 + b) * P_ + u, LANES);
        },
        [&](int64_t b, const V* sums) {
          T* gates = gates_ + (row0 - chunk_.row + b) * NV * H_ + u;
          LstmGates<Math> g{sums[0] + load(gates, n), sums[1] + load(gates + H_, n), sums[2] + load(gates + 2 * H_, n),
                            sums[3] + load(gates + 3 * H_, n)};
          const Drops<Math> drops = masks_.drops(b, u, t);
          V c = load(&c_[b * H_ + u], n), h_new;
          lstm_forward<Math>(sites_, drops, g, c, h_new);
          store(&c_[b * H_ + u], c, n);
          if (p_.gates) {
            store(gates, g.i, n);
            store(gates + H_, g.f, n);
            store(gates + 2 * H_, g.g, n);
            store(gates + 3 * H_, g.o, n);
          }
          if (p_.cells) store(p_.cells + (row0 + b) * H_ + u, c, n);
          if (ends(p_.sequence, t, b)) store(p_.c_n + b * H_ + u, c, n);
          if (p_.w_hr) {
            store(&outputs_[b * H_ + u], h_new, n);
          } else {
            finish(s, t, b, u, drops.zone_h, h_new);
          }
        });
  }

  // LANES units of the projected h at step t.
  void project(int64_t s, int64_t t, int64_t u) {
    product<1>(
        0, p_.sequence.active(t), [&](int64_t b) { return &outputs_[b * H_]; }, &w_hr_[u * H_], H_,
        [&](int64_t b, const V* sums) { finish(s, t, b, u, masks_.drops(b, u, t).zone_h, sums[0]); });
  }

  // Zoneout of h, and everything that h goes to.
  void finish(int64_t s, int64_t t, int64_t b, int64_t u, Mask<T> keep, V h_new) {
    const int64_t n = P_ - u, row = p_.sequence.row(t) + b;
    T* state = &h_[b * P_ + u];
    const V h = Zone<Math>::mix(sites_.zone_h, keep, load(state, n), h_new);
    store(state, h, n);
    store(&read_[(((s + 1) % 2) * B_ + b) * P_ + u], masks_.hidden(b, u, h), n);
    store(p_.out + row * P_ + u, sites_.unzoned ? h_new : h, n);
    if (p_.states) store(p_.states + row * P_ + u, h, n);
    if (ends(p_.sequence, t, b)) store(p_.h_n + b * P_ + u, h, n);
  }

  const LstmForward<T>& p_;
  const int64_t H_, P_, B_, most_;
  const StateSites<Math> sites_;
  const StateMasks<T> masks_;
  const MaskedWeight<T> m_ih_;
  const GateTiles<NV, T> w_ih_;
  Buffer<T> w_hh_, w_hr_, bias_;
  Buffer<T> buffer_;   // [rows of a chunk, 4H]: gates that are not kept
  Buffer<T> read_;     // [2, B, P]: h as the recurrent product sees it, of this step and of the next
  Buffer<T> h_, c_;    // [B, P], [B, H]: the state; each unit is touched by its owner alone
  Buffer<T> outputs_;  // [B, H]: with a projection, what it reads
  Chunk chunk_{};
  T* gates_ = nullptr;  // of the chunk: in, W_ih x + b; out, activated
};
