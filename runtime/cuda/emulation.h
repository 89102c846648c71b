/* CUDA C++ kernels on the CPU, for C++17: what generated .cu files use of the language, with checks.
 *
 * An index outside a buffer ends the launch with a sentence, and so do two threads of a block that
 * touch one element of shared memory between barriers, one of them writing; shared memory that the
 * block has not written; and a barrier that not all threads of a block reach. emulation.cpp runs the
 * threads; one launch runs at a time. */
#ifndef SMELT_CUDA_EMULATION_H
#define SMELT_CUDA_EMULATION_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __syncthreads() smelt::barrier(__LINE__)
#define blockIdx smelt::now.block
#define threadIdx smelt::now.thread

/* The spellings of memory that generated code uses; its own prelude has those for a GPU. */
#define SMELT_GLOBAL(type) smelt::Global<type>
#define SMELT_RESTRICT(type) smelt::Global<type>
#define SMELT_EXTENT(buffer, elements) buffer.bound(#buffer, elements)
#define SMELT_SHARED(type, name, elements) static smelt::Shared<type, elements> name(#name)
#define SMELT_PRIVATE(type, name, elements) smelt::Private<type, elements> name(#name)

namespace smelt {

struct Index {
    unsigned x, y, z;
};

/* The thread that runs. `interval` counts the times between two barriers, over all blocks of all
 * launches; `first_interval` is the first of the block. */
struct Now {
    Index block, thread;
    int32_t number; /* of the thread in its block */
    int64_t interval, first_interval;
};
extern Now now;

void barrier(int line);
[[noreturn]] void outside(const char *buffer, int64_t index, int64_t elements);
[[noreturn]] void race(const char *buffer, int64_t index, int32_t other, const char *accesses);
[[noreturn]] void unwritten(const char *buffer, int64_t index);

inline int64_t checked(const char *buffer, int64_t index, int64_t elements)
{
    if ((uint64_t)index >= (uint64_t)elements)
        outside(buffer, index, elements);
    return index;
}

/* A parameter: memory of the device, as many elements as SMELT_EXTENT says. */
template <class T> class Global {
    T *data;
    int64_t elements = 0;
    const char *name = "?";

public:
    explicit Global(uint64_t address) : data((T *)(uintptr_t)address) {}

    void bound(const char *buffer, int64_t count)
    {
        name = buffer;
        elements = count;
    }

    T &operator[](int64_t index) const { return data[checked(name, index, elements)]; }
};

/* Who touched an element of shared memory last, and when. */
struct Touch {
    int64_t written = -1, read = -1; /* the interval */
    int32_t writer = 0, reader = 0;  /* reader: -1 for several */

    void note_read(const char *buffer, int64_t index)
    {
        if (written < now.first_interval)
            unwritten(buffer, index);
        if (written == now.interval && writer != now.number)
            race(buffer, index, writer, "wrote what this one reads");
        reader = read == now.interval && reader != now.number ? -1 : now.number;
        read = now.interval;
    }

    void note_write(const char *buffer, int64_t index)
    {
        if (written == now.interval && writer != now.number)
            race(buffer, index, writer, "wrote it too");
        if (read == now.interval && reader != now.number)
            race(buffer, index, reader, "read what this one writes");
        written = now.interval;
        writer = now.number;
    }
};

/* An element of shared memory. */
template <class T> class Element {
    T &value;
    Touch &touch;
    const char *name;
    int64_t index;

public:
    Element(T &value, Touch &touch, const char *name, int64_t index)
        : value(value), touch(touch), name(name), index(index) {}

    operator T() const
    {
        touch.note_read(name, index);
        return value;
    }

    Element &operator=(T x)
    {
        touch.note_write(name, index);
        value = x;
        return *this;
    }

    Element &operator=(const Element &other) { return *this = (T)other; }
};

template <class T, int64_t elements> class Shared {
    T values[elements] = {};
    Touch touches[elements];
    const char *name;

public:
    constexpr explicit Shared(const char *name) : touches(), name(name) {}

    Element<T> operator[](int64_t index)
    {
        checked(name, index, elements);
        return Element<T>(values[index], touches[index], name, index);
    }
};

/* An array of one thread. */
template <class T, int64_t elements> class Private {
    T values[elements];
    const char *name;

public:
    explicit Private(const char *name) : name(name) {}

    T &operator[](int64_t index) { return values[checked(name, index, elements)]; }
};

/* ---- launching ------------------------------------------------------------------------------- */

template <class T> struct Argument {
    static T of(void *value) { return *(T *)value; }
};
template <class T> struct Argument<Global<T>> {
    static Global<T> of(void *value) { return Global<T>(*(uint64_t *)value); }
};

/* Calls a kernel with arguments as cuLaunchKernel takes them. */
template <auto kernel> struct Entry;
template <class... P, void (*kernel)(P...)> struct Entry<kernel> {
    template <size_t n, size_t... i> struct Count : Count<n - 1, n - 1, i...> {};
    template <size_t... i> struct Count<0, i...> {
        static void call(void **arguments)
        {
            (void)arguments;
            kernel(Argument<P>::of(arguments[i])...);
        }
    };

    static void call(void **arguments) { Count<sizeof...(P)>::call(arguments); }
    static constexpr int arguments = sizeof...(P);
};

/* What the emulated driver loads: kernels by name, to the one without a name. */
struct Kernel {
    const char *name;
    void (*call)(void **arguments);
    int arguments; /* each of 8 bytes */
    int barriers;  /* whether threads wait for each other */
};

} // namespace smelt

#endif
