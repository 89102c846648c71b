/* What dataflow firmware is written in: integers of any width, words of several, FIFOs, and layers
 * that run at the same time.
 *
 * For the vendor's tools (SMELT_VENDOR, or __SYNTHESIS__) these are their own types. Elsewhere they
 * are plain C++17: every layer is a thread, every FIFO has the depth that the hardware has, and a
 * network that cannot go on is an error that names the FIFOs it waits for, instead of a hang. */
#ifndef SMELT_FPGA_HPP
#define SMELT_FPGA_HPP

#include <stdint.h>

#if defined(__SYNTHESIS__) || defined(SMELT_VENDOR)
#include <ap_int.h>
#include <hls_stream.h>

namespace smelt {
template <int W> using sint = ap_int<W>;
template <int W> using uint = ap_uint<W>;
template <int W> using sint_rom = ap_int<W>;
template <int W> using uint_rom = ap_uint<W>;
template <class T> using stream = hls::stream<T>;
}  // namespace smelt

#define SMELT_FIFO(name, depth) name(#name)
#define SMELT_NETWORK
#define SMELT_LAYER(call) call
#define SMELT_JOIN

#else
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

namespace smelt {

/* Integers ------------------------------------------------------------------------------------ */

template <int W> using signed_of = std::conditional_t<(W <= 8), int8_t, std::conditional_t<
    (W <= 16), int16_t, std::conditional_t<(W <= 32), int32_t, int64_t>>>;
template <int W> using unsigned_of = std::make_unsigned_t<signed_of<W>>;
template <int W> using sint_rom = signed_of<W>;
template <int W> using uint_rom = unsigned_of<W>;

/* A signed integer of W bits: what does not fit wraps, as in ap_int. */
template <int W> class sint {
    static_assert(W >= 1 && W <= 64, "integers have 1 to 64 bits");
    signed_of<W> value;

public:
    sint() = default;
    constexpr sint(int64_t x)
        : value((signed_of<W>)((int64_t)((uint64_t)x << (64 - W)) >> (64 - W))) {}
    constexpr operator signed_of<W>() const { return value; }
};

/* An unsigned one, as ap_uint. */
template <int W> class uint {
    static_assert(W >= 1 && W <= 64, "integers have 1 to 64 bits");
    unsigned_of<W> value;

public:
    uint() = default;
    constexpr uint(int64_t x) : value((unsigned_of<W>)((uint64_t)x << (64 - W) >> (64 - W))) {}
    constexpr operator unsigned_of<W>() const { return value; }
};

/* Threads and FIFOs --------------------------------------------------------------------------- */

class deadlock : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

class fifo;

/* The layers that run at the same time, and which of them wait. */
class network {
    struct waiter {
        const fifo *queue;
        bool writes;
    };
    std::mutex mutex;
    std::vector<std::thread> threads;
    std::vector<waiter *> waiting;
    size_t running = 1; /* the thread that starts the others, until it waits for them, too */
    std::string failure;
    std::atomic<bool> stopped{false};

    void check();
    friend class fifo;

public:
    network() = default;
    network(const network &) = delete;
    ~network() { finish(); }

    template <class F> void run(F layer) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            ++running;
        }
        threads.emplace_back([this, layer] {
            current() = this;
            try {
                layer();
            } catch (const deadlock &) {
            }
            std::lock_guard<std::mutex> lock(mutex);
            --running;
            check();
        });
    }
    void finish() {
        if (threads.empty()) return;
        {
            std::lock_guard<std::mutex> lock(mutex);
            --running;
            check();
        }
        for (std::thread &t : threads) t.join();
        threads.clear();
    }
    /* Waits for all layers; throws deadlock when they waited for each other. */
    void join() {
        finish();
        if (!failure.empty()) throw deadlock(failure);
    }
    static network *&current() {
        static thread_local network *of_thread = nullptr;
        return of_thread;
    }
};

/* A bounded queue between one writer and one reader. */
class fifo {
    const char *const name;
    const size_t depth;
    std::atomic<size_t> head{0}, tail{0}; /* words read and written so far */
    std::atomic<int> asleep{0}; /* threads: the other end may sleep before this one is awake */
    std::condition_variable changed;
    friend class network;

    bool ready(bool writes) const {
        const size_t held = tail.load() - head.load();
        return writes ? held < depth : held > 0;
    }

protected:
    fifo(const char *name, size_t depth) : name(name), depth(depth) {}
    fifo(const fifo &) = delete;

    /* The place of the next word, once there is one. */
    size_t wait(bool writes) {
        if (!ready(writes)) sleep(writes);
        return (writes ? tail : head).load(std::memory_order_relaxed) % depth;
    }
    void done(bool wrote) {
        (wrote ? tail : head).fetch_add(1);
        network *net = network::current();
        if (asleep.load() && net) {
            std::lock_guard<std::mutex> lock(net->mutex);
            changed.notify_all();
        }
    }

private:
    void sleep(bool writes) {
        network *net = network::current();
        if (!net) throw deadlock(std::string("FIFO ") + name + (writes ? " is full" : " is empty"));
        std::unique_lock<std::mutex> lock(net->mutex);
        network::waiter self{this, writes};
        net->waiting.push_back(&self);
        asleep.fetch_add(1);
        net->check();
        changed.wait(lock, [&] { return ready(writes) || net->stopped.load(); });
        asleep.fetch_sub(1);
        for (size_t i = 0; i < net->waiting.size(); ++i) {
            if (net->waiting[i] == &self) {
                net->waiting[i] = net->waiting.back();
                net->waiting.pop_back();
                break;
            }
        }
        if (!ready(writes)) throw deadlock("stopped");
    }
};

/* With the mutex held: all layers that still run wait, and none of them for what is there. */
inline void network::check() {
    if (stopped.load() || !running || waiting.size() < running) return;
    std::string full, empty;
    for (const waiter *w : waiting) {
        if (w->queue->ready(w->writes)) return;
        std::string &list = w->writes ? full : empty;
        list += list.empty() ? "" : ", ";
        list += std::string(w->queue->name) + " (depth " + std::to_string(w->queue->depth) + ")";
    }
    failure = "deadlock: no layer can go on";
    if (!full.empty()) failure += "; full: " + full;
    if (!empty.empty()) failure += "; empty: " + empty;
    stopped.store(true);
    for (const waiter *w : waiting) const_cast<fifo *>(w->queue)->changed.notify_all();
}

template <class T> class stream : fifo {
    std::vector<T> words;

public:
    stream(const char *name, size_t depth) : fifo(name, depth), words(depth) {}
    T read() {
        const T word = words[wait(false)];
        done(false);
        return word;
    }
    void write(const T &word) {
        words[wait(true)] = word;
        done(true);
    }
};

}  // namespace smelt

#define SMELT_FIFO(name, depth) name(#name, depth)
#define SMELT_NETWORK smelt::network smelt_layers
#define SMELT_LAYER(call) smelt_layers.run([&] { call; })
#define SMELT_JOIN smelt_layers.join()
#endif

namespace smelt {
/* Elements that travel together. */
template <class T, int N> struct word {
    T element[N];
};
}  // namespace smelt

#endif
