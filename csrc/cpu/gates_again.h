// The gates of a chunk of steps computed once more, for a backward whose forward kept only the states.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

template <int NV, class T>
class GatesAgain {
 public:
  // p: the arguments of a backward pass, whose caller asked for little memory.
  template <class Backward>
  GatesAgain(const Backward& p, const MaskedWeight<T>& w_ih, const MaskedWeight<T>& w_hh, const T* bias,
             int64_t largest)
      : parallel_(p.parallel),
        x_(p.x),
        w_ih_(p.parallel, w_ih, sparing_packing(p, w_ih)),
        w_hh_(p.parallel, w_hh, sparing_packing(p, w_hh)),
        bias_(bias),
        gates_(scratch<T>(largest * NV * w_ih_.units())) {}

  // `activate(row, unit, gates, sums)` gets W x + bias of each gate, units apart, and the sums of the recurrent
  // product. The caller may write over what it returns.
  template <class Activate>
  T* run(const Chunk& chunk, const T* operand, Activate&& activate) {
    const int64_t units = w_ih_.units();
    input_product<NV>(parallel_, x_ + chunk.row * w_ih_.inputs(), chunk.rows, w_ih_, bias_, gates_.get());
    gate_products<NV>(parallel_, operand, chunk.rows, w_hh_, [&](int64_t row, int64_t u, const Vec<T>* sums) {
      activate(row, u, &gates_[row * NV * units + u], sums);
    });
    return gates_.get();
  }

 private:
  const Parallel& parallel_;
  const T* const x_;
  const GateTiles<NV, T> w_ih_, w_hh_;
  const T* const bias_;
  Buffer<T> gates_;  // [rows of a chunk, NV * units]
};
