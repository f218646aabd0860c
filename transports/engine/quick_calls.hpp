// Calls whose arguments were seen before: found and run without Python in between.
//
// The communicator's Python code checks a call, chooses, builds and connects, once per shape; what it found is added
// here. From then on `call` needs some hundred nanoseconds from the arguments to the running engine. Whatever is not
// quite as before (another dtype object, a view with gaps, a read-only array) is simply not found, and takes the long way.
#pragma once
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <nanobind/nanobind.h>
#include <numpy/arrayobject.h>

#include <unordered_map>
#include <vector>

#include "engine.hpp"

namespace treering {

namespace nb = nanobind;

class QuickCalls {
 public:
  using Run = int (*)(Engine&, const std::shared_ptr<Program>&, double, const std::vector<char*>&);

  QuickCalls(std::shared_ptr<Engine> engine, nb::object on_failure, Run run)
      : engine_(std::move(engine)), on_failure_(std::move(on_failure)), run_(run) {}

  void set_tensor_type(nb::object type) { tensor_type_ = std::move(type); }  // torch's, once it is imported

  // Without `out`, `make` makes the result, which has the shape `shape`. Not `gets`: there is none on this rank.
  void add(int collective, nb::handle x, nb::handle out, nb::object op, int root, nb::object algorithm,
           std::shared_ptr<Program> program, nb::object token, double timeout_s, nb::object make,
           std::vector<int64_t> shape, bool gets) {
    Key key;
    Memory from, to;
    if (!describe(x, key.x, from) || (!out.is_none() && !describe(out, key.out, to))) return;
    relate(key, out, from, to);
    complete(key, collective, op, root, algorithm);
    if (known_.size() >= kMostCalls) known_.clear();
    std::vector<npy_intp> dims(shape.begin(), shape.end());
    known_[key] = Known{std::move(program), std::move(token), timeout_s, std::move(make), std::move(dims),
                        nb::borrow(static_cast<PyObject*>(key.x.dtype)), nb::borrow(static_cast<PyObject*>(key.out.dtype)),
                        std::move(op), std::move(algorithm), gets};
  }

  nb::object call(int collective, nb::handle x, nb::handle out, nb::handle op, int root, nb::handle algorithm) {
    Key key;
    Memory from, to;
    if (!describe(x, key.x, from)) return nb::borrow(Py_NotImplemented);
    if (out.ptr() == x.ptr()) {
      key.out = key.x;
      to = from;
    } else if (!out.is_none() && !describe(out, key.out, to)) {
      return nb::borrow(Py_NotImplemented);
    }
    relate(key, out, from, to);
    complete(key, collective, op, root, algorithm);
    auto found = known_.find(key);
    if (found == known_.end() || !to.writable) return nb::borrow(Py_NotImplemented);
    Known& known = found->second;
    auto program = known.program;  // the table may change while others run
    double timeout_s = known.timeout_s;
    nb::object token = known.token, result = known.gets ? nb::borrow(out) : nb::none();
    if (out.is_none() && known.gets) {
      if (key.x.numpy) {
        Py_INCREF(known.dtype.ptr());  // PyArray_Empty takes it
        result = nb::steal(PyArray_Empty(static_cast<int>(known.shape.size()), known.shape.data(),
                                         reinterpret_cast<PyArray_Descr*>(known.dtype.ptr()), 0));
        if (!result.is_valid()) throw nb::python_error();
        to.data = static_cast<char*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(result.ptr())));
      } else {
        nb::object make = known.make;
        result = make();
        to.data = tensor_data(result);
      }
    }
    std::vector<char*> buffers;
    buffers.swap(buffers_);
    buffers.assign({from.data, to.data, scratch_});
    int kind = run_(*engine_, program, timeout_s, buffers);
    buffers_.swap(buffers);
    if (kind != 0) on_failure_(token);
    return result;
  }

  void set_scratch(uintptr_t address) { scratch_ = reinterpret_cast<char*>(address); }
  void clear() { known_.clear(); }

 private:
  static constexpr size_t kMostCalls = 4096;
  static constexpr int kDims = 6;

  struct Memory {
    char* data = nullptr;
    size_t bytes = 0;
    bool writable = true;
  };
  struct Array {  // what of an array a call depends on
    void* dtype = nullptr;
    bool numpy = false;
    int16_t dims = 0;
    int64_t shape[kDims] = {};
    bool operator==(const Array&) const = default;
  };
  struct Key {
    Array x, out;
    void* op = nullptr;
    void* algorithm = nullptr;
    int32_t collective = 0, root = 0;
    bool given = false, overlaps = false;  // `out`
    int64_t offset = 0;  // of `out` from `x`, where they overlap
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& k) const {
      size_t h = reinterpret_cast<size_t>(k.x.dtype) ^ (static_cast<size_t>(k.collective) << 7) ^
                 static_cast<size_t>(k.x.dims) ^ (static_cast<size_t>(k.out.dims) << 4) ^ static_cast<size_t>(k.offset);
      for (int i = 0; i < k.x.dims; i++) h = h * 0x9e3779b97f4a7c15 + static_cast<size_t>(k.x.shape[i]);
      return h ^ reinterpret_cast<size_t>(k.op) ^ (reinterpret_cast<size_t>(k.algorithm) << 1) ^
             static_cast<size_t>(k.root);
    }
  };
  struct Known {
    std::shared_ptr<Program> program;
    nb::object token;  // names the call when it fails
    double timeout_s;
    nb::object make;
    std::vector<npy_intp> shape;
    nb::object dtype, out_dtype, op, algorithm;  // keep the objects whose addresses are in the key
    bool gets = true;
  };

  static void complete(Key& key, int collective, nb::handle op, int root, nb::handle algorithm) {
    key.collective = collective;
    key.op = op.ptr();  // names in source code are one object; others take the long way
    key.root = root;
    key.algorithm = algorithm.ptr();
  }

  static void relate(Key& key, nb::handle out, const Memory& from, const Memory& to) {
    key.given = !out.is_none();
    key.overlaps = key.given && to.data < from.data + from.bytes && from.data < to.data + to.bytes;
    key.offset = key.overlaps ? to.data - from.data : 0;
  }

  // Fills in what an array is and where; false for what is no plain C-contiguous array.
  bool describe(nb::handle x, Array& array, Memory& memory) {
    if (Py_TYPE(x.ptr()) == &PyArray_Type) {
      auto* a = reinterpret_cast<PyArrayObject*>(x.ptr());
      int dims = PyArray_NDIM(a);
      if (dims > kDims || !PyArray_IS_C_CONTIGUOUS(a)) return false;
      array.numpy = true;
      array.dtype = PyArray_DESCR(a);
      array.dims = static_cast<int16_t>(dims);
      std::copy_n(PyArray_DIMS(a), dims, array.shape);
      memory = {static_cast<char*>(PyArray_DATA(a)), static_cast<size_t>(PyArray_NBYTES(a)),
                PyArray_ISWRITEABLE(a) != 0};
      return true;
    }
    if (tensor_type_.is_none() || Py_TYPE(x.ptr()) != reinterpret_cast<PyTypeObject*>(tensor_type_.ptr())) return false;
    try {
      if (!yes(x.attr(is_cpu_)) || !yes(x.attr(is_contiguous_)()) || yes(x.attr(is_neg_)()) ||
          yes(x.attr(is_conj_)())) {
        return false;
      }
      nb::object shape = x.attr(shape_);
      Py_ssize_t dims = PyTuple_GET_SIZE(shape.ptr());
      if (dims > kDims) return false;
      array.dtype = nb::object(x.attr(dtype_)).ptr();
      array.dims = static_cast<int16_t>(dims);
      for (Py_ssize_t i = 0; i < dims; i++) array.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
      memory.data = tensor_data(x);
      memory.bytes = static_cast<size_t>(PyLong_AsLongLong(nb::object(x.attr(nbytes_)).ptr()));
      return true;
    } catch (nb::python_error&) {  // a sparse tensor, for one: the long way has the words for it
      return false;
    }
  }
  static bool yes(const nb::object& o) { return o.ptr() == Py_True; }
  char* tensor_data(nb::handle x) {
    nb::object address = x.attr(data_ptr_)();
    return static_cast<char*>(PyLong_AsVoidPtr(address.ptr()));
  }

  std::shared_ptr<Engine> engine_;
  nb::object tensor_type_ = nb::none(), on_failure_;
  Run run_;
  char* scratch_ = nullptr;
  std::unordered_map<Key, Known, Hash> known_;
  std::vector<char*> buffers_;
  static nb::object name(const char* text) { return nb::steal(PyUnicode_InternFromString(text)); }
  nb::object is_cpu_ = name("is_cpu"), is_contiguous_ = name("is_contiguous"), is_neg_ = name("is_neg"),
             is_conj_ = name("is_conj");
  nb::object shape_ = name("shape"), dtype_ = name("dtype"), data_ptr_ = name("data_ptr"), nbytes_ = name("nbytes");
};

}  // namespace treering
