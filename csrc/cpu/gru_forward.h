// GRU (reset after the recurrent product), forward: one pass over time. See lstm_forward.h.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.
//
// With cell dropout the state is kept unscaled, and everything that reads it, the recurrent product, the output and the
// caller, sees it times read_scale.

template <class T>
class GruForwardPass {
  using V = Vec<T>;
  using Math = SimdMath<T>;
  static constexpr int NV = 3;

 public:
  explicit GruForwardPass(const GruForward<T>& p)
      : p_(p),
        H_(p.units),
        B_(p.sequence.batch),
        sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, B_, H_),
        w_hh_(pack_gates<NV>(p.parallel, p.w_hh, H_, H_)),
        read_(scratch<T>(2 * B_ * H_)),
        h_(scratch<T>(B_ * H_)) {
    for (int64_t b = 0; b < B_; ++b) enter_row(b);
  }

  void run() {
    const int64_t tiles = tiles_of(H_, LANES);
    const int groups = groups_for(p_.parallel, tiles, 6.0 * B_ * H_ * H_);
    Team(p_.parallel, p_.sequence.steps, groups).run([&](int64_t s, int group) {
      for (int64_t tile = share(tiles, group, groups); tile < share(tiles, group + 1, groups); ++tile)
        units(s, p_.sequence.time(s), tile * LANES);
    });
  }

 private:
  void enter_row(int64_t b) {
    for (int64_t u = 0; u < H_; u += LANES) {
      const V h =
          enter<Math>(masks_.dead_units(), sites_.entry_scale, masks_.dead(b, u), load(p_.h0 + b * H_ + u, H_ - u));
      const V read = masks_.hidden(b, u, sites_.read_scale * h);
      store(&h_[b * H_ + u], h, H_ - u);
      for (int half = 0; half < 2; ++half) store(&read_[(half * B_ + b) * H_ + u], read, H_ - u);
    }
  }

  static V with_bias(const T* bias, int64_t at, int64_t n, V value) {
    return bias ? value + load(bias + at, n) : value;
  }

  void units(int64_t s, int64_t t, int64_t u) {
    const int64_t n = H_ - u, row0 = p_.sequence.row(t);
    const T* read = &read_[(s % 2) * B_ * H_];
    product<NV>(
        0, p_.sequence.active(t), [&](int64_t b) { return read + b * H_; }, &w_hh_[u * H_ * NV], H_,
        [&](int64_t b, const V* sums) {
          const int64_t row = row0 + b;
          T* gates = p_.gates + row * 3 * H_ + u;
          V input[NV], recurrent[NV];
          for (int v = 0; v < NV; ++v) {
            input[v] = with_bias(p_.b_ih, v * H_ + u, n, load(gates + v * H_, n));
            recurrent[v] = with_bias(p_.b_hh, v * H_ + u, n, sums[v]);
          }
          GruGates<Math> g{input[0] + recurrent[0], input[1] + recurrent[1], input[2], recurrent[2]};
          const Drops<Math> drops = masks_.drops(b, u, t);
          const V h_prev = load(&h_[b * H_ + u], n);
          const V h_new = gru_forward<Math>(sites_, drops, g, h_prev);
          const V h = Zone<Math>::mix(sites_.zone_h, drops.zone_h, h_prev, h_new);
          store(&h_[b * H_ + u], h, n);
          const V seen = sites_.read_scale * h;
          store(&read_[(((s + 1) % 2) * B_ + b) * H_ + u], masks_.hidden(b, u, seen), n);
          store(p_.out + row * H_ + u, sites_.unzoned ? sites_.read_scale * h_new : seen, n);
          if (p_.resets) {
            store(gates, g.r, n);
            store(gates + H_, g.z, n);
            store(gates + 2 * H_, g.n, n);
            store(p_.resets + row * H_ + u, g.u, n);
          }
          if (p_.states) store(p_.states + row * H_ + u, h, n);
          if (ends(p_.sequence, t, b)) store(p_.h_n + b * H_ + u, seen, n);
        });
  }

  const GruForward<T>& p_;
  const int64_t H_, B_;
  const StateSites<Math> sites_;
  const StateMasks<T> masks_;
  Buffer<T> w_hh_;
  Buffer<T> read_;  // [2, B, H]: h as the recurrent product sees it, of this step and of the next
  Buffer<T> h_;     // [B, H]: the state; each unit is touched by its owner alone
};
