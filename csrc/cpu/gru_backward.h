// GRU (reset after the recurrent product), backward: the mirror image of the forward pass. See lstm_backward.h.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

template <class T, int NV>
class GruBackwardPass {
  using V = Vec<T>;
  using Math = SimdMath<T>;
  static constexpr int64_t WIDTH = NV * LANES;

 public:
  explicit GruBackwardPass(const GruBackward<T>& p)
      : p_(p),
        H_(p.units),
        B_(p.sequence.batch),
        sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, B_, H_),
        w_hh_(pack_columns<NV>(p.parallel, p.w_hh, 3 * H_, H_)),
        dh_(scratch<T>(B_ * H_)) {
    // A caller's h_n is the state times read_scale.
    for (int64_t i = 0; i < B_ * H_; ++i) dh_[i] = p.dh_n ? sites_.read_scale * p.dh_n[i] : T(0);
  }

  void run() {
    const int64_t T_ = p_.sequence.steps, tiles = tiles_of(H_, WIDTH);
    const int groups = groups_for(p_.parallel, tiles, 6.0 * B_ * H_ * H_);
    Team(p_.parallel, T_ + 1, groups).run([&](int64_t s, int group) {
      for (int64_t tile = share(tiles, group, groups); tile < share(tiles, group + 1, groups); ++tile)
        s < T_ ? hidden(p_.sequence.time(T_ - 1 - s), tile * WIDTH) : leave(tile * WIDTH);
    });
  }

 private:
  const T* drecurrent(int64_t t, int64_t b) const { return p_.drecurrent + (p_.sequence.row(t) + b) * 3 * H_; }

  // The state's gradient from what the recurrent product's operand got.
  V through(int64_t b, int64_t u, V sum) const { return sites_.read_scale * masks_.hidden(b, u, sum); }

  void hidden(int64_t t, int64_t u) {
    const int64_t after = p_.sequence.after(t), continued = p_.sequence.continued_by(t);
    product<NV>(
        0, continued, [&](int64_t b) { return drecurrent(after, b); }, &w_hh_[u * 3 * H_], 3 * H_,
        [&](int64_t b, const V* sums) {
          for (int v = 0; v < NV; ++v) at_h(t, b, u + v * LANES, sums[v]);
        });
    for (int64_t b = continued; b < p_.sequence.active(t); ++b)
      for (int v = 0; v < NV; ++v) at_h(t, b, u + v * LANES, V{});
  }

  void at_h(int64_t t, int64_t b, int64_t u, V sum) {
    if (u >= H_) return;
    const int64_t n = H_ - u, row = p_.sequence.row(t) + b;
    const Drops<Math> drops = masks_.drops(b, u, t);
    const V dout = p_.dout ? sites_.read_scale * load(p_.dout + row * H_ + u, n) : V{};
    T* carried = &dh_[b * H_ + u];
    V dh = load(carried, n) + through(b, u, sum);
    if (!sites_.unzoned) dh += dout;
    V dh_new = Zone<Math>::to_new(sites_.zone_h, drops.zone_h, dh);
    if (sites_.unzoned) dh_new += dout;
    const T* gates = p_.gates + row * 3 * H_ + u;
    GruGates<Math> g{load(gates, n), load(gates + H_, n), load(gates + 2 * H_, n), load(p_.resets + row * H_ + u, n)};
    const V leak = gru_backward<Math>(sites_, drops, g, state_before(t, b, u), dh_new);
    store(carried, Zone<Math>::to_old(sites_.zone_h, drops.zone_h, dh) + leak, n);
    T* dinput = p_.dinput + row * 3 * H_ + u;
    T* drecurrent = p_.drecurrent + row * 3 * H_ + u;
    for (T* to : {dinput, drecurrent}) {
      store(to, g.r, n);
      store(to + H_, g.z, n);
    }
    store(dinput + 2 * H_, g.n, n);
    store(drecurrent + 2 * H_, g.u, n);
  }

  V state_before(int64_t t, int64_t b, int64_t u) const {
    const int64_t n = H_ - u;
    if (b < p_.sequence.continued_from(t))
      return load(p_.states + (p_.sequence.row(p_.sequence.before(t)) + b) * H_ + u, n);
    return enter<Math>(masks_.dead_units(), sites_.entry_scale, masks_.dead(b, u), load(p_.h0 + b * H_ + u, n));
  }

  // From the gates of each row's first step to the caller's h_0.
  void leave(int64_t u) {
    product<NV>(
        0, B_, [&](int64_t b) { return drecurrent(p_.sequence.first(b), b); }, &w_hh_[u * 3 * H_], 3 * H_,
        [&](int64_t b, const V* sums) {
          for (int v = 0; v < NV && u + v * LANES < H_; ++v) {
            const int64_t at = u + v * LANES, n = H_ - at;
            const V dh = load(&dh_[b * H_ + at], n) + through(b, at, sums[v]);
            const V entered = enter<Math>(masks_.dead_units(), sites_.entry_scale, masks_.dead(b, at), dh);
            store(p_.dh0 + b * H_ + at, entered, n);
          }
        });
  }

  const GruBackward<T>& p_;
  const int64_t H_, B_;
  const StateSites<Math> sites_;
  const StateMasks<T> masks_;
  Buffer<T> w_hh_;
  Buffer<T> dh_;  // [B, H]: the gradient carried from step to step; each unit is touched by its owner alone
};
