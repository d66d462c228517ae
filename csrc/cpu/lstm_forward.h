// LSTM, forward: one pass over time. Each group of threads owns hidden units, with their weights, memory and masks.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

// Rows whose last step is t: their state goes to h_n and c_n.
inline bool ends(const Sequence& sequence, int64_t t, int64_t b) { return b >= sequence.continued_by(t); }

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
        sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, B_, H_),
        w_hh_(pack_gates<NV>(p.parallel, p.w_hh, H_, P_)),
        w_hr_(nullptr, nullptr),
        read_(scratch<T>(2 * B_ * P_)),
        h_(scratch<T>(B_ * P_)),
        c_(scratch<T>(B_ * H_)),
        outputs_(scratch<T>(p.w_hr ? B_ * H_ : 0)) {
    if (p.w_hr) {
      const Buffer<T> w = transposed(p.parallel, p.w_hr, P_, H_);
      w_hr_ = pack_columns<1>(p.parallel, w.get(), H_, P_);
    }
    for (int64_t b = 0; b < B_; ++b) enter_row(b);
  }

  void run() {
    const int64_t tiles = tiles_of(H_, LANES), phases = p_.w_hr ? 2 : 1;
    const int groups = groups_for(p_.parallel, tiles, 8.0 * B_ * H_ * P_);
    Team(p_.parallel, p_.sequence.steps * phases, groups).run([&](int64_t step, int group) {
      const int64_t s = step / phases, t = p_.sequence.time(s);
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

  // LANES hidden units at step t: recurrent product, gates, memory.
  void units(int64_t s, int64_t t, int64_t u) {
    const int64_t n = H_ - u, row0 = p_.sequence.row(t);
    const T* read = &read_[(s % 2) * B_ * P_];
    product<NV>(
        0, p_.sequence.active(t), [&](int64_t b) { return read + b * P_; }, &w_hh_[u * P_ * NV], P_,
        [&](int64_t b, const V* sums) {
          T* gates = p_.gates + (row0 + b) * 4 * H_ + u;
          V a[NV];
          for (int v = 0; v < NV; ++v) {
            a[v] = sums[v] + load(gates + v * H_, n);
            if (p_.bias) a[v] += load(p_.bias + v * H_ + u, n);
          }
          LstmGates<Math> g{a[0], a[1], a[2], a[3]};
          const Drops<Math> drops = masks_.drops(b, u, t);
          V c = load(&c_[b * H_ + u], n), h_new;
          lstm_forward<Math>(sites_, drops, g, c, h_new);
          store(&c_[b * H_ + u], c, n);
          if (p_.cells) {
            store(gates, g.i, n);
            store(gates + H_, g.f, n);
            store(gates + 2 * H_, g.g, n);
            store(gates + 3 * H_, g.o, n);
            store(p_.cells + (row0 + b) * H_ + u, c, n);
          }
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
  const int64_t H_, P_, B_;
  const StateSites<Math> sites_;
  const StateMasks<T> masks_;
  Buffer<T> w_hh_, w_hr_;
  Buffer<T> read_;     // [2, B, P]: h as the recurrent product sees it, of this step and of the next
  Buffer<T> h_, c_;    // [B, P], [B, H]: the state; each unit is touched by its owner alone
  Buffer<T> outputs_;  // [B, H]: with a projection, what it reads
};
