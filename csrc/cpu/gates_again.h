// The gates of a chunk of steps computed once more, for a backward whose forward kept only the states.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

template <int NV, class T>
class GatesAgain {
 public:
  // p: the arguments of a backward pass. The recurrent product reads `recurrent` numbers a row.
  template <class Backward>
  GatesAgain(const Backward& p, int64_t units, int64_t recurrent, const MaskedWeight<T>& w_ih,
             const MaskedWeight<T>& w_hh, const T* bias, int64_t largest)
      : parallel_(p.parallel),
        units_(units),
        inputs_(p.inputs),
        recurrent_(recurrent),
        x_(p.x),
        w_ih_(pack_gates<NV>(p.parallel, w_ih)),
        w_hh_(pack_gates<NV>(p.parallel, w_hh)),
        bias_(bias),
        gates_(scratch<T>(largest * NV * units)) {}

  // `activate(row, unit, gates, sums)` gets W x + bias of each gate, units apart, and the sums of the recurrent
  // product.
  template <class Activate>
  const T* run(const Chunk& chunk, const T* operand, Activate&& activate) {
    input_product<NV>(parallel_, x_ + chunk.row * inputs_, chunk.rows, inputs_, w_ih_.get(), bias_, units_,
                      gates_.get());
    each_tile(parallel_, tiles_of(units_, LANES), chunk.rows, NV * LANES * recurrent_,
              [&](int64_t tile, int64_t begin, int64_t end) {
                const int64_t u = tile * LANES;
                product<NV>(
                    begin, end, [&](int64_t row) { return operand + row * recurrent_; }, &w_hh_[u * recurrent_ * NV],
                    recurrent_,
                    [&](int64_t row, const Vec<T>* sums) { activate(row, u, &gates_[row * NV * units_ + u], sums); });
              });
    return gates_.get();
  }

 private:
  const Parallel& parallel_;
  const int64_t units_, inputs_, recurrent_;
  const T* const x_;
  Buffer<T> w_ih_, w_hh_;
  const T* const bias_;
  Buffer<T> gates_;  // [rows of a chunk, NV * units]
};
