// Keeps one llama.cpp model warm and times what stdin asks for, one JSON line per answer.
//
//     llama_driver MODEL STATE THREADS FLASH_ATTENTION(0|1) MAX_DEPTH
//
//     prefill TOKENS DEPTH    one batch: {"seconds": [s]}
//     decode TOKENS DEPTH     one by one: {"seconds": [s, s, ...]}
//     anything wrong          {"error": "..."}
//
// DEPTH is the number of tokens in the cache before. The cache is filled to MAX_DEPTH by a real
// prefill when a depth is first asked for, and STATE keeps it for later processes, also a part of
// it; the cache is then cut to the depth. Between requests the process waits for stdin and its
// threads sleep.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "llama.h"

namespace {

constexpr int MAX_BATCH = 2048;
constexpr int SPARE_TOKENS = 1024;  // behind MAX_DEPTH, for what is timed there

double now_s() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

void print_errors_only(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

class Driver {
  public:
    Driver(char ** words)
        : state_path_(words[2]), max_depth_(std::stoi(words[5])),
          capacity_(max_depth_ + SPARE_TOKENS) {
        llama_model_params model_params = llama_model_default_params();
        // Repacked weights are a copy: mapping the file too would double the memory.
        model_params.load_mode = LLAMA_LOAD_MODE_NONE;
        // The AMX code takes these two halves of kv_b when the model is loaded and refuses them in
        // the graph, where their other operand is a permuted view: ggml_abort without this. It
        // must be a copy, since an override to the type itself chooses among AMX and all others.
        static ggml_backend_buffer_type plain = *ggml_backend_cpu_buffer_type();
        const llama_model_tensor_buft_override overrides[] = {
            {"attn_[kv]_b", &plain}, {nullptr, nullptr}};
        model_params.tensor_buft_overrides = overrides;
        model_ = llama_model_load_from_file(words[1], model_params);
        if (!model_) throw std::runtime_error("llama.cpp cannot load the model");
        num_words_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
        llama_context_params params = llama_context_default_params();
        params.n_ctx = capacity_;
        params.n_batch = MAX_BATCH;
        params.n_threads = params.n_threads_batch = std::stoi(words[3]);
        params.flash_attn_type = std::stoi(words[4]) ? LLAMA_FLASH_ATTN_TYPE_ENABLED
                                                     : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        context_ = llama_init_from_model(model_, params);
        if (!context_) throw std::runtime_error("llama.cpp cannot make a context");
        run(2);  // unmeasured: buffers are allocated, pages touched
        run(1);
    }

    std::vector<double> prefill(int tokens, int depth) {
        reach(depth, tokens);
        std::vector<double> seconds{run(tokens)};
        check_logits();
        return seconds;
    }

    std::vector<double> decode(int tokens, int depth) {
        reach(depth, tokens);
        std::vector<double> seconds;
        for (int i = 0; i < tokens; ++i) seconds.push_back(run(1));
        check_logits();
        return seconds;
    }

  private:
    // Bring the cache to exactly this many tokens.
    void reach(int depth, int tokens) {
        if (depth < 0 || depth > max_depth_ || tokens < 1 || depth + tokens > capacity_)
            throw std::out_of_range("depth or tokens beyond the cache");
        if (depth > filled_) restore();
        llama_memory_seq_rm(llama_get_memory(context_), 0, depth, -1);
        filled_ = depth;
    }

    // Fill the cache to MAX_DEPTH: from this process's copy, or from the file and by a prefill.
    void restore() {
        llama_memory_clear(llama_get_memory(context_), true);
        if (kept_.empty()) {
            for (load(); filled_ < max_depth_; save())
                for (int i = 0; i < 2; ++i) run(std::min(512, max_depth_ - filled_));
            kept_.resize(llama_state_seq_get_size(context_, 0));
            llama_state_seq_get_data(context_, kept_.data(), kept_.size(), 0);
        } else if (!llama_state_seq_set_data(context_, kept_.data(), kept_.size(), 0)) {
            throw std::runtime_error("llama.cpp does not take its own state");
        }
        filled_ = max_depth_;
    }

    void load() {
        llama_token unused;  // without a place for tokens nothing is loaded
        size_t count = 0;
        if (std::filesystem::exists(state_path_) &&
            !llama_state_seq_load_file(context_, state_path_.c_str(), 0, &unused, 1, &count))
            throw std::runtime_error("delete " + state_path_ + ", llama.cpp does not take it");
        filled_ = llama_memory_seq_pos_max(llama_get_memory(context_), 0) + 1;  // -1 if empty
    }

    void save() {
        std::string temporary = state_path_ + ".part";
        if (!llama_state_seq_save_file(context_, temporary.c_str(), 0, nullptr, 0))
            throw std::runtime_error("cannot write " + temporary);
        std::filesystem::rename(temporary, state_path_);
    }

    // Append random tokens and return how long it took.
    double run(int tokens) {
        std::uniform_int_distribution<llama_token> any(0, num_words_ - 1);
        double seconds = 0;
        for (int left = tokens; left > 0;) {
            std::vector<llama_token> ids(std::min(left, MAX_BATCH));
            for (auto & id : ids) id = any(random_);
            double start = now_s();
            int status = llama_decode(context_, llama_batch_get_one(ids.data(), ids.size()));
            llama_synchronize(context_);
            seconds += now_s() - start;
            if (status) throw std::runtime_error("llama_decode: " + std::to_string(status));
            left -= ids.size();
        }
        filled_ += tokens;
        return seconds;
    }

    // Numbers that are not finite would make a time worthless.
    void check_logits() {
        const float * logits = llama_get_logits_ith(context_, -1);
        for (int i = 0; i < num_words_; ++i)
            if (!std::isfinite(logits[i])) throw std::runtime_error("a logit is not finite");
    }

    std::string state_path_;
    int max_depth_;
    int capacity_;
    llama_model * model_ = nullptr;
    llama_context * context_ = nullptr;
    int num_words_ = 0;
    int filled_ = 0;
    std::vector<uint8_t> kept_;
    std::mt19937 random_{0};
};

std::string quoted(std::string text) {
    for (char & letter : text)
        if (letter == '"' || letter == '\\' || letter < ' ') letter = '\'';
    return '"' + text + '"';
}

void answer(Driver & driver, const std::string & line) {
    std::istringstream words(line);
    std::string verb;
    int tokens = 0, depth = 0;
    words >> verb >> tokens >> depth;
    if (verb != "prefill" && verb != "decode") throw std::runtime_error("unknown: " + line);
    auto seconds =
        verb == "prefill" ? driver.prefill(tokens, depth) : driver.decode(tokens, depth);
    std::cout << "{\"seconds\": [";
    for (size_t i = 0; i < seconds.size(); ++i) std::cout << (i ? ", " : "") << seconds[i];
    std::cout << "]}" << std::endl;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 6) return 2;
    llama_log_set(print_errors_only, nullptr);
    llama_backend_init();
    std::cout.precision(9);
    try {
        Driver driver(argv);
        std::cout << "{\"ggml\": " << quoted(ggml_version()) << ", \"system\": "
                  << quoted(llama_print_system_info()) << "}" << std::endl;
        for (std::string line; std::getline(std::cin, line);) {
            try {
                answer(driver, line);
            } catch (const std::exception & error) {
                std::cout << "{\"error\": " << quoted(error.what()) << "}" << std::endl;
            }
        }
    } catch (const std::exception & error) {
        std::cout << "{\"error\": " << quoted(error.what()) << "}" << std::endl;
        return 1;
    }
}
